"""`dmd shard` and `dmd verify` as a user runs them."""

import subprocess
import sys

import pytest

from data_shards.commands import parse_shard, shard, shard_parser, verify
from data_shards.reading.index import ShardIndex
from data_shards.shard_options import OF_BOTH, OF_FILES, OF_SYNTHETIC
from tests.support.small_data import mmsa, save


def test_a_pickle_becomes_shards_that_verify(tmp_path, capsys):
    data = mmsa()
    data["train"]["audio"][0, 0, 0] = float("nan")
    path, out = save(data, tmp_path / "mosi.pkl"), str(tmp_path / "shards")
    assert shard([str(path), out, "--samples-per-shard", "10", "--nonfinite", "zero"]) == 0
    printed = capsys.readouterr().out
    assert "train/audio: 1 non-finite values stored as 0" in printed
    assert "mosi, train 23, valid 5, test 7; 5 shards, generation" in printed
    assert verify([out]) == 0
    assert "35 samples in 5 shards" in capsys.readouterr().out


def test_verify_names_broken_samples(tmp_path, capsys):
    out = tmp_path / "shards"
    assert shard(["--synthetic", str(out), "--samples", "20", "--text-kind", "tokens", "--name", "mine"]) == 0
    info = ShardIndex.load(out).info
    assert (info.name, info.text_kind) == ("mine", "tokens")
    path = out / info.shards[0].name
    raw = bytearray(path.read_bytes())
    raw[int(ShardIndex.load(out).records("train", [1])["offset"][0, 2]) + 300] ^= 4
    path.write_bytes(raw)
    assert verify([str(out)]) == 1
    printed = capsys.readouterr().out
    assert f"{path.name}: sample 000000001:" in printed
    assert "1 broken" in printed


@pytest.mark.parametrize(
    "argv",
    [
        ["only-shards"],
        ["--synthetic", "a", "b"],
        ["a", "b", "--text", "words"],
    ],
)
def test_wrong_arguments_exit_2(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        shard(argv)
    error = capsys.readouterr().err
    assert error.startswith("dmd shard: error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("source", ["FEATURES", "--synthetic"])
def test_options_that_mean_nothing_for_the_source_are_rejected(source, capsys):
    """Each option of the other source, by its name."""
    parser, others = shard_parser(), OF_FILES if source == "--synthetic" else OF_SYNTHETIC
    known = [action.dest for action in parser._actions if action.dest != "help"]
    assert sorted(known) == sorted((*OF_BOTH, *OF_FILES, *OF_SYNTHETIC)), "each option is of one of the three"
    for action in parser._actions:
        if action.dest not in others:
            continue
        count = 1 if action.nargs is None else action.nargs
        values = [value for value in action.choices or ("7", "8") if value != action.default][:count]
        with pytest.raises(SystemExit, match="2"):
            parse_shard(parser, ["SHARDS", source, action.option_strings[0], *values])
        assert f"error: {action.option_strings[0]} is of " in capsys.readouterr().err


def test_bad_options_are_value_errors(tmp_path):
    with pytest.raises(ValueError, match="samples per shard: 0 is too few"):
        shard(["--synthetic", str(tmp_path / "s"), "--samples-per-shard", "0"])
    assert not (tmp_path / "s").exists()


def test_without_an_address_no_ray_is_loaded(tmp_path):
    code = "import sys; from dmd.cli import main; print(main(sys.argv[1:]), {'ray'} & {*sys.modules})"
    command = [sys.executable, "-c", code, "shard", "--synthetic", str(tmp_path / "out"), "--samples", "20"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.endswith("\n0 set()\n")


def test_options_may_stand_between_features_and_shards(tmp_path):
    path = save(mmsa(), tmp_path / "mosi.pkl")
    assert shard([str(path), "--samples-per-shard", "10", str(tmp_path / "out")]) == 0
    assert len(ShardIndex.load(tmp_path / "out").info.shards) == 5
