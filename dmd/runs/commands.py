"""The subcommand `dmd runs`."""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_shards.command_line import Parser
from dmd.documents import RUNS
from dmd.runs.columns import Column, find_column, matches, sort_runs
from dmd.runs.compare import comparison, comparison_csv, comparison_json
from dmd.runs.find import find_runs
from dmd.runs.listing import listing, listing_csv, listing_json
from dmd.runs.summary import RunSummary, read_summary
from dmd.runs.tags import change_tags, check_tag
from dmd.text_tables import printable


def runs_parser() -> Parser:
    """Arguments of `dmd runs`."""
    parser = Parser(
        prog="dmd runs",
        description="List the runs below folders with what tells them apart and their best validation; the test split "
        "is never read. KEY is a column (state, tags, data, preset, seed, best_step, epochs, steps, time, started), "
        "loss, a metric such as mae, or a config key such as learning_rate.",
    )
    parser.add_argument("folders", nargs="*", type=Path, metavar="DIR", help=f"default: {RUNS}")
    parser.add_argument("--sort", metavar="KEY", help="the best, or the lowest, first (default: in order of starting)")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument(
        "--where", action="append", default=[], metavar="KEY=VALUE", help="only such runs; may be repeated"
    )
    parser.add_argument("--compare", nargs=2, type=Path, metavar="RUN", help="these two side by side")
    parser.add_argument("--best", action="store_true", help="print the path of the best run alone, by validation loss")
    parser.add_argument("--tag", action="append", default=[], metavar="NAME", help="give the runs DIR ... this tag")
    parser.add_argument("--untag", action="append", default=[], metavar="NAME", help="take it from the runs DIR ...")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="everything as JSON; Acc and F1 are shares in [0, 1]")
    output.add_argument("--csv", action="store_true", help="the table with all metrics as CSV")
    return parser


def runs(argv: list[str]) -> int:
    """List, sort, filter, compare and tag runs; name the best one."""
    options = runs_parser().parse_intermixed_args(argv)
    _check(options)
    if options.tag or options.untag:
        return _tag(options.folders, add=options.tag, remove=options.untag)
    if options.compare:
        return _compare(options)
    found = with_defaults([run for path in _paths(options.folders) if (run := _read(path)) is not None])
    column = find_column(options.sort, found) if options.sort and found else None
    conditions = [condition.partition("=") for condition in options.where if found]
    wanted = [(find_column(key.strip(), found), value.strip()) for key, _, value in conditions]
    found = [run for run in found if all(matches(run, of, value) for of, value in wanted)]
    if options.best:
        print(best_run(found, column, reverse=options.reverse).path)
        return 0
    found = sort_runs(found, column or find_column("started", found), reverse=options.reverse)
    if options.json:
        print(listing_json(found))
    elif options.csv:
        print(listing_csv(found), end="")
    elif found:
        print(listing(found, sorted_by=column))
    else:
        places = ", ".join(map(str, options.folders or [RUNS]))
        _remark(f"no run below {places}{' is such' if options.where else ''}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise ValueError for options that do not go together."""
    changes = bool(options.tag or options.untag)
    if changes and (
        options.compare
        or options.best
        or options.sort
        or options.where
        or options.reverse
        or options.json
        or options.csv
    ):
        raise ValueError("--tag and --untag change the runs that are named; list, sort and compare by another command")
    if changes and not options.folders:
        raise ValueError("--tag and --untag need the runs; name their directories, such as runs/first")
    if options.compare and (options.folders or options.best or options.sort or options.where or options.reverse):
        raise ValueError(
            "--compare takes two runs and neither DIR, --best, --sort, --where nor --reverse; leave those out"
        )
    if options.best and (options.json or options.csv):
        raise ValueError("--best prints a path alone; leave --json and --csv out")
    for condition in options.where:
        if "=" not in condition:
            raise ValueError(f"--where is {condition!r}; give KEY=VALUE, such as state=finished")
    for name in (*options.tag, *options.untag):
        check_tag(name)


def _tag(paths: Sequence[Path], *, add: list[str], remove: list[str]) -> int:
    for path in paths:
        tags = change_tags(path, add=add, remove=remove)
        print(f"{path}: {', '.join(tags) or 'no tag'}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    first, second = with_defaults([read_summary(path) for path in options.compare])
    if options.json:
        print(comparison_json(first, second))
    elif options.csv:
        print(comparison_csv(first, second), end="")
    else:
        print(comparison(first, second))
    return 0


def _paths(folders: Sequence[Path]) -> list[Path]:
    return find_runs(folders or [RUNS], _remark)


def _read(path: Path) -> RunSummary | None:
    """A run; None, and a line that says why, where it cannot be read."""
    try:
        return read_summary(path)
    except (ValueError, OSError) as error:
        _remark(f"{error}; {path} is left out")
        return None


def _remark(text: str) -> None:
    print(f"dmd runs: {printable(text)}", file=sys.stderr)


def with_defaults(found: Sequence[RunSummary]) -> list[RunSummary]:
    """Runs whose configs have the same keys: one that an older program did not know has what it stands for."""
    known = {key for run in found for key in run.config}
    if all(run.config.keys() == known for run in found):
        return list(found)
    from dmd.config.loading import config_to_dict, written_config
    from dmd.report.identity import flatten, nested

    filled = []
    for run in found:
        try:
            config = flatten(config_to_dict(written_config(nested(run.config))))
        except ValueError as error:  # of a newer program, whose keys this one does not know
            _remark(f"{run.path}: {error}")
            config = run.config
        filled.append(replace(run, config=config))
    return filled


def best_run(found: Sequence[RunSummary], column: Column | None, *, reverse: bool) -> RunSummary:
    """The best of runs that have a checkpoint, by their validation loss or another column.

    Raises:
        ValueError: there is none; or they were validated on other data, or by other measures.
    """
    able = [run for run in found if run.best is not None and run.best.kept and math.isfinite(run.best.loss)]
    if not able:
        raise ValueError(f"none of {len(found)} runs has a checkpoint with a validation; let `dmd train` make one")
    kinds = dict.fromkeys((run.data, run.protocol, run.loss_title) for run in able)
    if len(kinds) > 1:
        what = "; ".join(f"{data} ({title}, protocol {protocol})" for data, protocol, title in kinds)
        raise ValueError(f"no run is the best of different data or tasks: {what}; choose some with --where data=NAME")
    return sort_runs(able, column or find_column("loss", able), reverse=reverse)[0]
