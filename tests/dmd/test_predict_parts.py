"""Predictions as a directory of parts, by one process: the rows of a file, resumed, checked, and what is rejected."""

import json
import pickle

import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from data_shards.places import to_place
from data_shards.reading.index import ShardIndex
from data_shards.sole_writer import sole_writer
from dmd.inference.outputs import is_directory
from dmd.inference.part_files import MANIFEST, REQUEST
from tests.support.commands import command, rejected
from tests.support.small_data import files
from tests.support.trained import make_shards, train

SPLITS = ("--split", "train", "--split", "test", "--split", "valid")
"""70, 20 and 10 samples."""
SIZE = ("--samples-per-part", 64)


@pytest.fixture(scope="module")
def whole(run, shards, tmp_path_factory):
    """A finished directory."""
    out = tmp_path_factory.mktemp("parts") / "whole"
    assert command("predict", run, shards, *SPLITS, "--out", out, *SIZE) == 0
    return out


def parts(out):
    return [name for name in files(out) if name.startswith("part-")]


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_parts_are_the_rows_of_a_file(kind, run, shards, whole, tmp_path):
    out = whole
    if kind == "classes":
        (run,), out = train(shards, {tmp_path / "run": ["train.epochs=1", "model.task=3"]}), tmp_path / "out"
        assert command("predict", run, shards, *SPLITS, "--out", out, *SIZE) == 0
    assert command("predict", run, shards, *SPLITS, "--out", tmp_path / "out.parquet") == 0
    file, table = pq.read_table(tmp_path / "out.parquet"), ds.dataset(out).to_table()
    assert table.schema.equals(file.schema)
    assert table.replace_schema_metadata().equals(file.replace_schema_metadata())
    assert pd.read_parquet(out).equals(file.to_pandas())
    index = ShardIndex.load(shards)
    assert table["id"].to_pylist() == [
        name for split, count in (("train", 70), ("test", 20), ("valid", 10)) for name in index.ids(split, range(count))
    ]


def test_the_manifest_says_what_is_there(whole, run, shards):
    manifest = json.loads((whole / MANIFEST).read_text())
    assert (manifest["run"], manifest["rows"]) == (str(run), 100)
    assert manifest["generation"] == ShardIndex.load(shards).info.generation
    assert [entry["name"] for entry in manifest["parts"]] == parts(whole)
    assert [(entry["split"], entry["begin"], entry["rows"]) for entry in manifest["parts"]] == [
        ("train", 0, 64),
        ("train", 64, 6),
        ("test", 0, 20),
        ("valid", 0, 10),
    ]
    assert set(files(whole)) == {REQUEST, MANIFEST, *parts(whole)}


def test_a_command_that_failed_continues_with_what_is_missing(whole, run, shards, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    order = ("predict", run, shards, *SPLITS, "--out", out, *SIZE)
    monkeypatch.setenv("DMD_FAULT", "storage:part@3")
    assert "No space left on device" in rejected(capsys, *order)
    monkeypatch.delenv("DMD_FAULT")
    before = files(out)
    assert parts(out) == ["part-000000.parquet", "part-000001.parquet"]
    (out / f".part-000002.parquet-{'0' * 32}").write_bytes(b"of a killed writer")
    assert MANIFEST not in before
    times = {name: (out / name).stat().st_mtime_ns for name in parts(out)}
    assert command(*order) == 0
    assert (
        "100 predictions (train 70, test 20, valid 10) in 4 parts, 2 of them written before" in capsys.readouterr().out
    )
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    assert files(out) == files(whole)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.with_name("part-000001.parquet").read_bytes()),
        lambda path: pq.write_table(pq.read_table(path).replace_schema_metadata(), path),
    ],
    ids=["gone", "cut short", "of other samples", "of another request"],
)
def test_a_part_that_is_not_right_is_made_again(damage, whole, run, shards, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for name, content in files(whole).items():
        (out / name).write_bytes(content)
    damage(out / "part-000002.parquet")
    assert command("predict", run, shards, *SPLITS, "--out", out, *SIZE) == 0
    assert "in 4 parts, 3 of them written before" in capsys.readouterr().out
    assert files(out) == files(whole)


def test_another_request_is_rejected(whole, runs, shards, tmp_path, capsys):
    def error(*order):
        return rejected(capsys, "predict", *order, "--out", whole, *SIZE)

    before = files(whole)
    assert f'{whole} holds predictions with another model: "' in error(runs[1], shards, *SPLITS)
    assert '"valid": 10}, not {"valid": 10}; give another --out, or the --split that' in error(runs[0], shards)
    other_order = ("--split", "valid", "--split", "test", "--split", "train")
    assert 'not {"valid": 10, "test": 20, "train": 70}; ' in error(runs[0], shards, *other_order)
    other = make_shards(tmp_path / "other", 110)
    assert "another generation: " in error(runs[0], other, *SPLITS)
    assert "samples_per_part: 64, not 128; " in rejected(
        capsys, "predict", runs[0], shards, *SPLITS, "--out", whole, "--samples-per-part", 128
    )
    assert files(whole) == before


def test_what_cannot_be_a_directory_of_parts(run, shards, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("dear")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"valid": {}}))
    for inputs, options, words in (
        (shards, ["--out", tmp_path / "there"], "there holds other files than predictions (letter.txt); give a new"),
        (shards, ["--out", f"{tmp_path}/there/letter.txt/"], "letter.txt is a file; give a directory"),
        (shards, ["--out", tmp_path / "x.txt"], "ends in '.txt'; name a .parquet or a .csv file, or a directory"),
        (
            shards,
            ["--out", "s3://b/x.parquet"],
            "is a file at a URL; give a directory there, such as s3://b/x.parquet/",
        ),
        (shards, ["--out", "https://h/x"], "https://h/x cannot be written to; give a directory or a bucket"),
        (shards, ["--out", f"{tmp_path}/o/", "--id", "x"], "takes whole splits; name a .parquet file with --id"),
        (shards, ["--out", f"{tmp_path}/o/", "--samples-per-part", "100"], "is 100; give a multiple of 64"),
        (shards, ["--out", f"{tmp_path}/o/", "--actors", "2"], "--actors is for actors on a Ray cluster; name one"),
        (tmp_path / "x.pkl", ["--out", f"{tmp_path}/o/"], "x.pkl is no directory of shards"),
        (
            shards,
            ["--out", "x.csv", "--address", "local"],
            "x.csv is a file, which one process writes; leave",
        ),
        (shards, ["--out", "o/", "--address", "local", "--actors", "0"], "--actors is 0; it must be at least 1"),
        (shards, ["--out", "o/", "--address", "local", "--cpus-per-actor", "0"], "is 0; it must be above 0"),
    ):
        assert words in rejected(capsys, "predict", run, inputs, *options)
    assert not (tmp_path / "o").exists()
    assert words not in rejected(capsys, "evaluate", run, "--address", "local", "--ranks", "2")


def test_a_second_command_learns_who_writes_there(run, shards, tmp_path, capsys):
    with sole_writer(tmp_path / "out"):
        error = rejected(capsys, "predict", run, shards, "--out", f"{tmp_path}/out/")
    assert "out is being written by process " in error


@pytest.mark.parametrize(
    "out, expected",
    [("x.parquet", False), ("x.csv", False), ("x", True), ("x.parquet/", True), ("x.1/", True), ("s3://b/x", True)],
)
def test_which_outputs_are_directories(out, expected):
    assert is_directory(to_place(out)) == expected
