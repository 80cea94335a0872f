"""Parquet and Arrow tables: what is read, and what is rejected with which message."""

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from data_shards.sources.table import TableSource
from data_shards.writing.build import build
from data_shards.writing.process_pool import ForkedProcesses
from tests.support.small_data import COUNTS, mmsa, read_all


def _table(data, *, ragged=True):
    rows = []
    for split, fields in data.items():
        for i, name in enumerate(fields["id"]):
            cut = {m: int(fields[f"{m}_lengths"][i]) if ragged else None for m in ("audio", "vision")}
            rows.append(
                {
                    "split": split,
                    "id": name,
                    "label": float(fields["regression_labels"][i]),
                    "raw_text": fields["raw_text"][i],
                    "text": fields["text"][i].tolist(),
                    "audio": fields["audio"][i, : cut["audio"]].tolist(),
                    "vision": fields["vision"][i, : cut["vision"]].tolist(),
                }
            )
    order = np.random.RandomState(0).permutation(len(rows))  # the splits lie mixed, as in most tables
    return pa.Table.from_pylist([rows[i] for i in order]), [rows[i] for i in order]


@pytest.mark.parametrize("kind", ["parquet", "directory", "hive", "feather"])
def test_tables(tmp_path, kind):
    table, rows = _table(mmsa())
    if kind == "parquet":
        path = tmp_path / "mosi.parquet"
        pq.write_table(table, path, row_group_size=5)
    elif kind == "feather":
        path = tmp_path / "mosi.arrow"
        feather.write_feather(table, path)
    else:
        path = tmp_path / "mosi"
        path.mkdir()
        if kind == "hive":
            pq.write_to_dataset(table, path, partition_cols=["split"])
        else:
            for start in range(0, len(table), 10):
                pq.write_table(table.slice(start, 10), path / f"part{start:03d}.parquet", row_group_size=4)
    info = build(TableSource(path), tmp_path / "shards", samples_per_shard=4, executor=ForkedProcesses(2))
    assert (info.name, info.counts) == ("mosi", COUNTS)
    assert info.lengths == {"text": 6, "audio": 9, "vision": 7}
    for split in COUNTS:
        expected = [row for row in rows if row["split"] == split]
        found = read_all(tmp_path / "shards", split)
        assert found["id"] == [row["id"] for row in expected]
        assert found["raw_text"] == [row["raw_text"] for row in expected]
        assert np.allclose(found["label"], [row["label"] for row in expected])
        for i, row in enumerate(expected):
            steps = len(row["audio"])
            assert np.array_equal(found["audio"][i, :steps], np.array(row["audio"], np.float32))
            assert not found["audio"][i, steps:].any()
            assert found["lengths"][i].tolist() == [6, steps, len(row["vision"])]


def test_tables_with_tokens_and_given_lengths(tmp_path):
    rows = [
        {
            "split": "train",
            "id": str(i),
            "label": 1.0,
            "text_bert": [[5, 6, 0], [1, 1, 0], [0, 0, 0]],
            "audio": [[1.0, 2.0]],
            "vision": [[1.0]] * 4,
            "vision_length": i,
        }
        for i in range(3)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert build(TableSource(tmp_path / "t.parquet"), tmp_path / "shards").text_kind == "tokens"
    assert read_all(tmp_path / "shards")["lengths"].tolist() == [[2, 1, 0], [2, 1, 1], [2, 1, 2]]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"split": "dave"}, "split 'dave' is unknown; use train, valid, test \\(or val, dev, validation\\)"),
        ({"audio": None}, "audio has 1 gaps"),
        ({"audio": [[1.0, None, 2.0]]}, "audio holds double with 1 gaps"),
        ({"audio": [[1.0, 2.0], [1.0]]}, "audio is ragged in its features"),
        ({"vision": [[float("nan"), 1.0]]}, r"train/vision 1 \(first in video"),
        ({"label": 7.0}, "label 7.0 is outside"),
    ],
)
def test_bad_tables_are_rejected(tmp_path, change, message):
    rows = _table(mmsa({"train": 6}))[1]
    rows[3].update(change)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=message):
        build(TableSource(tmp_path / "t.parquet"), tmp_path / "shards")


def test_tables_that_are_none(tmp_path):
    pq.write_table(
        pa.table({"split": ["train"], "id": ["a"], "label": [0.0], "audio": [[[1.0]]]}), tmp_path / "a.parquet"
    )
    with pytest.raises(ValueError, match="lacks the column text_bert; it has split, id, label, audio"):
        TableSource(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(ValueError, match=r"b\.parquet is no table that can be read"):
        TableSource(tmp_path / "b.parquet")
    (tmp_path / "notes.txt").write_text("nothing")
    for name, message in (("absent.parquet", "nothing at this path"), ("notes.txt", "is no table")):
        with pytest.raises(ValueError, match=message):
            TableSource(tmp_path / name)


@pytest.mark.parametrize(
    "column, value, words",
    [
        ("audio_length", None, "audio_length None is not a whole number"),
        ("audio_length", 1.5, "audio_length 1.5 is not a whole number"),
        ("audio_length", float("nan"), "audio_length nan is not a whole number"),
        ("label", "positive", "label 'positive' is not a number"),
        ("label", [1.0], r"label \[1.0\] is not a number"),
    ],
)
def test_lengths_and_labels_are_numbers(tmp_path, column, value, words):
    row = {
        "split": "train",
        "id": "a",
        "label": 1.0,
        "audio_length": 1,
        "text": [[1.0]],
        "audio": [[1.0], [2.0]],
        "vision": [[1.0]],
    }
    pq.write_table(pa.Table.from_pylist([{**row, column: value}]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=rf"t\.parquet: train sample 'a': {words}"):
        list(TableSource(tmp_path / "t.parquet").read("train", 0, 1))


def test_a_gap_in_the_sentences_is_an_empty_one(tmp_path):
    row = {"split": "train", "label": 1.0, "text": [[1.0]], "audio": [[1.0]], "vision": [[1.0]]}
    rows = [{**row, "id": "a", "raw_text": "yes"}, {**row, "id": "b", "raw_text": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert [sample.raw_text for sample in TableSource(tmp_path / "t.parquet").read("train", 0, 2)] == ["yes", ""]
