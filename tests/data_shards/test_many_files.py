"""Features in many files: directories of pickles or tables, what must agree among them, sources that are pickled."""

import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards.commands import shard
from data_shards.reading.index import ShardIndex
from data_shards.sources.detect import SourceOptions, open_source
from data_shards.sources.pickle_files import PickleFilesSource
from data_shards.sources.synthetic import SyntheticSource
from tests.support.sequences import frames, write_csd
from tests.support.small_data import COUNTS, files, mmsa, read_all, save

PARTS = ((0, 9), (9, 10), (10, 23))


def part(data, start, stop):
    """Some samples of each split."""
    return {
        split: {name: values[start:stop] for name, values in fields.items()}
        for split, fields in data.items()
        if len(fields["id"]) > start
    }


@pytest.fixture
def parts(tmp_path):
    """The whole pickle, and a directory with the same samples in several, splits inside."""
    whole, folder = mmsa(), tmp_path / "mosi"
    folder.mkdir()
    for start, stop in PARTS:
        save(part(whole, start, stop), folder / f"part{start:02d}.pkl")
    return save(whole, tmp_path / "mosi.pkl"), folder


@pytest.mark.parametrize("processes", ["1", "2"])
def test_many_pickles_are_one(parts, tmp_path, processes, capsys):
    whole, folder = parts
    (folder / "notes.txt").write_text("x")
    (folder / "._part00.pkl").write_bytes(b"x")
    assert shard([str(whole), str(tmp_path / "one"), "--samples-per-shard", "4"]) == 0
    options = ["--samples-per-shard", "4", "--processes", processes]
    assert shard([str(folder), str(tmp_path / "many"), *options]) == 0
    assert "ignored: annotations (35), file notes.txt (1)" in capsys.readouterr().out
    named = [str(file) for file in sorted(folder.glob("part*.pkl"))]
    assert shard([*named, str(tmp_path / "named"), *options]) == 0
    for there in ("many", "named"):
        assert ShardIndex.load(tmp_path / there).info.generation == ShardIndex.load(tmp_path / "one").info.generation
    tars = [
        {name: raw for name, raw in files(tmp_path / there).items() if name.endswith(".tar")}
        for there in ("one", "many")
    ]
    assert tars[0] == tars[1]


@pytest.mark.parametrize("names", ["{split}_{number}.pkl", "{split}/part{number}.pickle", "mosi-{split}-{number}.PKL"])
def test_the_split_may_be_in_the_path(tmp_path, names):
    words = {"train": "train", "valid": "Dev", "test": "test"}
    for number, (start, stop) in enumerate(PARTS):
        for split, fields in part(mmsa(), start, stop).items():
            path = tmp_path / "in" / names.format(split=words[split], number=number)
            path.parent.mkdir(parents=True, exist_ok=True)
            save(fields, path)
    assert shard([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    for split in COUNTS:
        assert np.array_equal(read_all(tmp_path / "out", split)["audio"], mmsa()[split]["audio"])


def misa(start, stop):
    """MISA's lists, with sequences as long as their number."""
    arrays = [(np.arange(1, 2 + i), np.ones((1 + i, 4), np.float32), np.ones((2, 3))) for i in range(start, stop)]
    return [(arrays[i - start], np.array([[i / 2 - 2]]), f"vid[{i}]") for i in range(start, stop)]


def test_lists_in_many_files_are_padded_to_the_longest(tmp_path):
    (tmp_path / "in").mkdir()
    save(misa(0, 3), tmp_path / "in" / "train_0.pkl")
    save(misa(3, 7), tmp_path / "in" / "train_1.pkl")
    assert shard([str(tmp_path / "in"), str(tmp_path / "out")]) == 0
    save({"train": misa(0, 7)}, tmp_path / "in.pkl")
    assert shard([str(tmp_path / "in.pkl"), str(tmp_path / "one")]) == 0
    assert ShardIndex.load(tmp_path / "out").info == ShardIndex.load(tmp_path / "one").info


def narrow(data):
    data["train"]["audio"] = data["train"]["audio"][:, :, :2]


def tokens(data):
    data["train"].pop("text")
    data["train"]["text_bert"] = mmsa(tokens=True)["train"]["text_bert"][9:10]


def missing(data):
    del data["train"]["vision"]


def infinite(data):
    data["train"]["vision"][0, 0, 0] = np.inf


def twice(data):
    data["train"]["id"] = mmsa()["train"]["id"][3:4]


def without_split(data):
    fields = data.pop("train")
    data |= fields


@pytest.mark.parametrize(
    "change, message",
    [
        (narrow, r"part09\.pkl: audio has 2 features per step, and 3 in .*part00\.pkl; give all files the same"),
        (tokens, r"part09\.pkl has tokens, and .*part00\.pkl text features; choose with --text"),
        (missing, r"part09\.pkl: train lacks vision; it has id, "),
        (infinite, r"part09\.pkl: non-finite values .*: train/vision 1 \(first in video9"),
        (twice, r"'video3.* is there twice: train sample 3 \(.*part00\.pkl\) and train sample 9 \(.*part09\.pkl\);"),
        (without_split, r"part09\.pkl has no split inside, and its name says none; write a dict \{split: fields\}, or"),
    ],
)
def test_what_must_agree(parts, tmp_path, change, message):
    folder = parts[1]
    data = part(mmsa(), 9, 10)
    change(data)
    save(data, folder / "part09.pkl")
    for processes in ("1", "2"):
        with pytest.raises(ValueError, match=message) as caught:
            shard([str(folder), str(tmp_path / "out"), "--samples-per-shard", "5", "--processes", processes])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_directory_and_options_that_do_not_fit(parts, tmp_path):
    whole, folder = parts
    with pytest.raises(ValueError, match="separate feature files can be given with one MMSA pickle only; leave"):
        shard([str(folder), str(tmp_path / "out"), "--feature-audio", str(whole)])
    save(part(mmsa(), 0, 2)["train"], folder / "train_or_test.pkl")
    with pytest.raises(ValueError, match=r"its name says several splits \(test, train\)"):
        shard([str(folder), str(tmp_path / "out")])


def test_named_files_of_two_kinds(parts, tmp_path):
    pq.write_table(pa.Table.from_pylist(rows_of(0, 3)), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("a,b")
    for named, words in (
        ((parts[0], tmp_path / "x.parquet"), r"x\.parquet is not a pickle, as other files here are"),
        ((tmp_path / "x.parquet", tmp_path / "x.csv"), r"x\.csv is not a table, as other files here are"),
    ):
        with pytest.raises(ValueError, match=words):
            shard([*map(str, named), str(tmp_path / "out")])


def rows_of(start, stop, features=2):
    return [
        {
            "split": "train",
            "id": f"clip{i}",
            "label": i % 5 - 2.0,
            "text": [[1.0 + i] * 3] * (1 + i % 3),
            "audio": [[0.5] * features] * 2,
            "vision": [[float(i)]],
        }
        for i in range(start, stop)
    ]


def tables(folder, features=2):
    """A directory of three files of nine rows in row groups of four; the last one has other features."""
    folder.mkdir()
    for number in range(3):
        table = pa.Table.from_pylist(rows_of(9 * number, 9 * number + 9, features if number == 2 else 2))
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=4)
    return folder


def test_tables_are_looked_at_by_several_processes(tmp_path):
    folder = tables(tmp_path / "in")
    for processes in ("1", "2"):
        assert (
            shard([str(folder), str(tmp_path / processes), "--samples-per-shard", "5", "--processes", processes]) == 0
        )
    assert files(tmp_path / "1") == files(tmp_path / "2")
    named = [str(folder / f"{number}.parquet") for number in range(3)]
    assert shard([*named, str(tmp_path / "named"), "--samples-per-shard", "5", "--name", "in"]) == 0
    assert files(tmp_path / "1") == files(tmp_path / "named")


def test_what_must_agree_among_tables(tmp_path):
    with pytest.raises(ValueError, match=r"2\.parquet: audio has 7 features per step, and 2 in the files before it"):
        shard([str(tables(tmp_path / "in", features=7)), str(tmp_path / "out")])
    pq.write_table(pa.Table.from_pylist(rows_of(3, 5)), tmp_path / "in" / "2.parquet")
    with pytest.raises(ValueError, match=r"clip3' is there twice: .*\(.*0\.parquet\) and .*\(.*2\.parquet\)"):
        shard([str(tmp_path / "in"), str(tmp_path / "out")])
    pq.write_table(pa.Table.from_pylist([{**rows_of(30, 31)[0], "id": None}]), tmp_path / "in" / "2.parquet")
    with pytest.raises(ValueError, match=r"2\.parquet: row 0 has no id"):
        shard([str(tmp_path / "in"), str(tmp_path / "out")])


@pytest.mark.parametrize("kind", ["mmsa", "misa", "files", "table", "synthetic"])
def test_a_pickled_source_gives_the_same_samples(kind, parts, tmp_path):
    """A task on another host gets it so: paths and counts, no features."""
    if kind == "synthetic":
        source = SyntheticSource(samples=20, steps=20, text_dim=4)
    else:
        save({"train": misa(0, 7)}, tmp_path / "misa.pkl")
        paths = {"mmsa": parts[0], "misa": tmp_path / "misa.pkl", "files": parts[1], "table": tmp_path / "in"}
        if kind == "table":
            tables(tmp_path / "in")
        source = open_source(paths[kind], SourceOptions())
    count = source.counts()["train"]
    before = list(source.read("train", 0, count))
    copy = pickle.loads(pickle.dumps(source))
    for start, stop in ((0, count), (count // 2, count)):
        for mine, theirs in zip(before[start:stop], copy.read("train", start, stop), strict=True):
            assert (mine.id, mine.lengths, mine.label) == (theirs.id, theirs.lengths, theirs.label)
            assert all(np.array_equal(getattr(mine, m), getattr(theirs, m)) for m in ("text", "audio", "vision"))


def test_a_file_that_was_opened_is_searched_once(parts):
    """Of a directory one pickle is open at a time, and reading it again looks for no infinite values."""
    source = open_source(parts[1], SourceOptions())
    assert isinstance(source, PickleFilesSource)
    data = part(mmsa(), 9, 10)
    infinite(data)
    save(data, parts[1] / "part09.pkl")
    assert np.isinf(next(iter(source.read("train", 9, 10))).vision[0, 0])


MEASURED = """
import pickle, sys
from pathlib import Path
from data_shards.format.tar import write_shard
import h5py
from data_shards.sources import detect, misa, mmsa, pickle_files, table
raw = Path(sys.argv[1]).read_bytes()
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
before = peak()
source = pickle.loads(raw)
for split, count in source.counts().items():
    for sample in source.read(split, 0, count):
        pass
print(peak() - before, source.memory())
"""


def large_sequences(folder):
    """Three videos of 20 MB each; returns how they are read."""
    folder.mkdir()
    audio = np.ones((50_000, 100), np.float32)
    for name, rows in {"T": np.ones((50, 4)), "A": audio, "V": np.ones((50, 2)), "L": np.ones((50, 1))}.items():
        write_csd(folder / f"{name}.csd", {f"v{i}": (frames(len(rows), 500 / len(rows)), rows) for i in range(3)})
    (folder / "splits.json").write_text('{"train": ["v0", "v1", "v2"]}')
    named = {"text": "T", "audio": "A", "vision": "V", "labels": "L"}
    return SourceOptions(csd=named, splits=str(folder / "splits.json"))


@pytest.mark.parametrize("kind", ["mmsa", "mmsa of protocol 2", "misa", "table", "csd"])
def test_the_bound_on_memory_holds(kind, tmp_path):
    """Of data of 60 MB: reading all of it takes no more than the source says, in a process of its own."""
    count = 300
    path = tmp_path / "x.pkl"
    if kind == "table":
        row = {"split": "train", "label": 1.0, "text": [[1.0] * 300] * 50, "audio": [[1.0]], "vision": [[1.0]]}
        table = pa.Table.from_pylist([{**row, "id": str(i)} for i in range(count)])
        path = tmp_path / "x.parquet"
        pq.write_table(table, path, row_group_size=50)
    elif kind == "misa":
        arrays = [(np.arange(1, 9), np.ones((20, 1200), np.float32), np.ones((20, 1200))) for _ in range(count)]
        save({"train": [(arrays[i], np.array([[1.0]]), f"a[{i}]") for i in range(count)]}, path)
    else:
        data = mmsa({"train": count})
        data["train"]["text"] = np.ones((count, 50, 1000), np.float32)
        save(data, path, protocol=2 if kind.endswith("2") else 4)
    options = SourceOptions()
    if kind == "csd":
        path, options = tmp_path / "csd", large_sequences(tmp_path / "csd")
    source = open_source(path, options)
    (tmp_path / "source").write_bytes(pickle.dumps(source))
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "source")]
    took, bound = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    slack = 16 << 20  # the interpreter's own: modules, malloc
    assert took <= bound + slack, (took, bound)
    assert took > 10e6, "else nothing was read"
    if kind == "mmsa":
        assert bound < 60e6, "the whole is not in memory"
