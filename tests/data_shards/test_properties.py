"""Samples are read as they were written: any sizes, splits, ragged lengths, number types, ids and shard sizes."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.format.arrays import decode_array
from data_shards.format.npy import header
from data_shards.format.schema import SPLITS, Sample, check_sample
from data_shards.reading.reader import ShardReader
from data_shards.sources.mmsa import MmsaSource
from data_shards.tools.verify import verify
from data_shards.writing.build import build
from data_shards.writing.process_pool import ForkedProcesses
from tests.support.small_data import files, save

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30) | st.sampled_from(
    ["a.b.c", "../../etc/passwd", "dir/vid.mp4$_$3", "03bSnISJMiM$_$1", "0", ".", "ünï\n\t'\"\\", "\u202e", "电影"]
)
TYPES = st.sampled_from(["<f4", "<f8", ">f4", "<f2", "<i4", ">i2", "|u1"])


@st.composite
def datasets(draw):
    """A random MMSA dict."""
    tokens = draw(st.booleans())
    steps = {m: draw(st.integers(1, 7)) for m in ("text", "audio", "vision")}
    dims = {m: draw(st.integers(1, 5)) for m in ("text", "audio", "vision")}
    types = {m: draw(TYPES) for m in ("text", "audio", "vision")}
    data = {}
    for split in draw(st.lists(st.sampled_from(SPLITS), min_size=1, max_size=3, unique=True)):
        count = draw(st.integers(1, 9))
        random = np.random.RandomState(draw(st.integers(0, 2**31)))
        fields = {
            "id": draw(st.lists(IDS, min_size=count, max_size=count, unique=True)),
            "regression_labels": random.uniform(-3, 3, count).astype(draw(st.sampled_from(["<f4", "<f8"]))),
        }
        for m in ("text", "audio", "vision"):
            fields[m] = random.randint(0, 100, (count, steps[m], dims[m])).astype(types[m])
            if draw(st.booleans()):
                fields[f"{m}_lengths"] = random.randint(0, steps[m] + 1, count)
        if tokens:
            fields["text_bert"] = random.randint(0, 30000, (count, 3, steps["text"]))
            del fields["text"]
            fields.pop("text_lengths", None)
        if draw(st.booleans()):
            fields["raw_text"] = draw(
                st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=count, max_size=count)
            )
        data[split] = fields
    return data


@given(datasets(), st.integers(1, 6), st.sampled_from([1, 2]), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_any_pickle_comes_back(data, samples_per_shard, processes, protocol):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = MmsaSource(save(data, folder / "x.pkl", protocol=protocol))
        info = build(
            source, folder / "shards", samples_per_shard=samples_per_shard, executor=ForkedProcesses(processes)
        )
        assert info.counts == {split: len(data[split]["id"]) for split in SPLITS if split in data}
        with ShardReader(folder / "shards") as reader:
            for split, fields in data.items():
                rows = range(len(fields["id"]))
                batch = reader.read(split, rows)
                assert reader.index.ids(split, rows) == fields["id"]
                assert reader.raw_texts(split, rows) == fields.get("raw_text", [""] * len(rows))
                assert np.array_equal(batch["label"], fields["regression_labels"].astype(np.float32))
                for i, m in enumerate(("text", "audio", "vision")):
                    given = fields["text_bert"] if m == "text" and "text_bert" in fields else fields[m]
                    assert np.array_equal(batch[m], given)
                    if f"{m}_lengths" in fields:
                        assert np.array_equal(batch["lengths"][:, i], fields[f"{m}_lengths"])
        assert not verify(folder / "shards", threads=2).damage
        again = build(source, folder / "again", samples_per_shard=samples_per_shard)
        assert again == info
        assert files(folder / "again") == files(folder / "shards")
        for shard in info.shards:
            samples = list(wds.WebDataset(str(folder / "shards" / shard.name), shardshuffle=False).decode())
            assert [sample["json"]["split"] for sample in samples] == [shard.split] * shard.samples


@settings(deadline=None)
@given(st.tuples(st.integers(1, 300), st.integers(1, 3000)), st.sampled_from(["<f4", "<f2", "<i4"]))
def test_npy_headers_are_numpys(shape, dtype):
    raw = header(shape, np.dtype(dtype))
    assert len(raw) % 64 == 0
    array = decode_array(raw + bytes(shape[0] * shape[1] * np.dtype(dtype).itemsize), "x.npy")
    assert (array.shape, array.dtype) == (shape, np.dtype(dtype))


def _sample(**change):
    one = np.ones((2, 3), np.float32)
    plain = {"id": "a", "split": "train", "label": 0.0, "raw_text": "", "text": one, "audio": one, "vision": one}
    return Sample(**{**plain, "lengths": (1, 1, 1), **change})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": ""}, "its id is empty"),
        ({"id": "\ud800"}, "cannot be written as UTF-8"),
        ({"raw_text": "\udfff"}, "cannot be written as UTF-8"),
        ({"label": 3.01}, r"outside \[-3, 3\]"),
        ({"label": float("nan")}, r"outside \[-3, 3\]"),
        ({"audio": np.ones(3, np.float32)}, r"audio has shape \(3,\)"),
        ({"vision": np.ones((0, 3), np.float32)}, r"vision has shape \(0, 3\)"),
        ({"audio": np.ones((2, 3))}, "audio is float64; it must be float32"),
        ({"audio": np.full((2, 3), np.nan, np.float32)}, r"audio \(2, 3\) has 6 non-finite values"),
        ({"text": np.ones((2, 3), np.int32)}, r"text has shape \(2, 3\)"),
        ({"text": -np.ones((3, 3), np.int32)}, "negative token id"),
        ({"lengths": (1, 3, 1)}, "audio length 3 is not between 0 and its 2 steps"),
        ({"lengths": (-1, 1, 1)}, "text length -1"),
    ],
)
def test_samples_that_no_shard_may_hold(change, message):
    check_sample(_sample())
    with pytest.raises(ValueError, match=message):
        check_sample(_sample(**change))
