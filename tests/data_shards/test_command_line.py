"""The parser of every command: one line for a mistake, with what is nearest."""

import argparse

import pytest

from data_shards.command_line import Parser, parser_of


def example(argv: list[str]) -> argparse.Namespace:
    parser = Parser(prog="dmd x", description="An example.", examples=["dmd x a --seed 3"])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--text")
    parser.add_argument("--xyzzy", help=argparse.SUPPRESS)
    return parser.parse_intermixed_args(argv)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--data d --sede 3", "unrecognized arguments: --sede (did you mean --seed?)"),
        ("--dta d", "unrecognized arguments: --dta (did you mean --data?)"),
        ("--data d --xyzy 3", "unrecognized arguments: --xyzy"),
        ("--data d --qqqqq=1", "unrecognized arguments: --qqqqq=1"),
        ("--data d -q", "unrecognized arguments: -q"),
        ("a b", "the following arguments are required: --data"),
        ("--data d --seed x", "argument --seed: invalid int value: 'x'"),
    ],
)
def test_a_mistake_is_one_line(line, message, capsys):
    with pytest.raises(SystemExit) as ended:
        example(line.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"dmd x: error: {message}; see dmd x --help\n"


def test_what_argparse_takes_is_taken():
    options = example(["a", "--see", "3", "b", "--data=d", "c", "--xyzzy", "h"])
    assert (options.files, options.seed, options.data, options.xyzzy) == (["a", "b", "c"], 3, "d", "h")


def test_a_value_may_begin_with_dashes_where_it_has_spaces():
    assert example(["--data", "d", "--text", "--oh no"]).text == "--oh no"


def test_examples_follow_the_help(capsys):
    with pytest.raises(SystemExit) as ended:
        example(["--sede", "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.endswith("\nexamples:\n  dmd x a --seed 3\n")


def test_a_command_gives_its_parser_without_running():
    parser = parser_of(example)
    assert parser.prog == "dmd x"
    assert "--seed" in parser.known_options()
    assert "--xyzzy" not in parser.known_options()
    assert example(["--data", "d"]).data == "d", "and runs as before"


def test_a_command_with_another_parser_is_found_out(capsys):
    def other(argv: list[str]) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("run")
        parser.parse_args(argv)

    with pytest.raises(AssertionError, match="parses with another parser"):
        parser_of(other)
