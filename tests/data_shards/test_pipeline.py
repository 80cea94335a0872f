"""`data_shards.pipeline`: every sample of an epoch once over ranks and workers, in order, with stages of the user's."""

import multiprocessing
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds

import data_shards
from data_shards.reading.reader import ShardReader
from data_shards.reading.shuffle import epoch_order
from tests.support.servers import QUICK
from tests.support.small_data import COUNTS, build_from, mmsa

ORDER = {"seed": 3, "epoch": 1, "window": 2}


@pytest.fixture
def shards(tmp_path):
    build_from(mmsa(), tmp_path)
    return tmp_path / "shards"


def _rows(samples):
    return [sample["row"] for sample in samples]


def _expected():
    return epoch_order(np.arange(COUNTS["train"]), num_samples=COUNTS["train"], shard_size=4, **ORDER).tolist()


def test_samples_come_in_our_order_and_are_those_of_the_reader(shards):
    samples = data_shards.pipeline(shards, "train", **ORDER)
    assert isinstance(samples, wds.DataPipeline)
    with ShardReader(shards) as reader:
        for sample, row in zip(samples, _expected(), strict=True):
            assert sample["row"] == row
            assert [sample["id"]] == reader.index.ids("train", [row])
            assert sample["__key__"] == f"{row:09d}"
            for name, array in reader.read("train", [row]).items():
                assert np.array_equal(sample[name], array[0])
    assert _rows(samples) == _expected(), "once more is the same epoch once more"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [0, 5])
def test_ranks_and_workers_give_every_sample_once_and_in_order(shards, workers, start):
    """With batches that are made behind the loader, and in its workers."""
    for rank in range(2):
        mine = _expected()[rank::2][start:]
        key = {"rank": rank, "num_ranks": 2, "start": start, **ORDER}
        behind = wds.WebLoader(data_shards.pipeline(shards, "train", **key), batch_size=None, num_workers=workers)
        samples = data_shards.pipeline(shards, "train", batch_size=3, **key)
        inside = wds.WebLoader(samples.batched(3), batch_size=None, num_workers=workers)
        for batches in (behind.batched(3), inside):
            expected = [mine[first : first + 3] for first in range(0, len(mine), 3)]
            assert [batch["row"].tolist() for batch in batches] == expected


def test_workers_that_are_spawned(shards):
    """Without turns of whole batches: every sample once, in another order."""
    samples = data_shards.pipeline(shards, "train", **ORDER).batched(4)
    loader = wds.WebLoader(
        samples, batch_size=None, num_workers=2, multiprocessing_context=multiprocessing.get_context("spawn")
    )
    batches = list(loader)
    assert sorted(row for batch in batches for row in batch["row"].tolist()) == list(range(COUNTS["train"]))
    assert batches[0]["text"].shape == (4, 6, 8)
    assert torch.is_tensor(batches[0]["text"])


def test_ranks_are_found_as_webdataset_finds_them(shards, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert _rows(data_shards.pipeline(shards, "train", **ORDER)) == _expected()[1::3]
    assert _rows(data_shards.pipeline(shards, "train", rank=0, num_ranks=1, **ORDER)) == _expected()


def test_a_remote_set(served, cache, monkeypatch):
    url, server, _ = served
    monkeypatch.setenv("DMD_CACHE_DIR", str(cache.root))
    server.faults = ["500", "flip", "truncate"]
    assert _rows(data_shards.pipeline(url, "train", remote=QUICK, **ORDER)) == _expected()
    assert not server.faults
    assert not (cache.root / "shards").exists()


def test_mistakes_are_explained(shards):
    for wrong, message in (
        ({"rank": 2, "num_ranks": 2}, "rank is 2 of 2; it must be from 0 to 1"),
        ({"rank": 0}, "rank and num_ranks go together; give both or none"),
        ({"start": -1}, "start is -1; it must be at least 0"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"window": 0}, "window is 0; it must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            data_shards.pipeline(shards, "train", **wrong)
    with pytest.raises(ValueError, match="has no dev split; it has train, valid, test"):
        data_shards.pipeline(shards, "dev")
    next(shards.glob("train-000003-*")).unlink()
    with pytest.raises(ValueError, match=r"cannot read .*train-000003"):
        list(data_shards.pipeline(shards, "train", **ORDER))


def test_the_example_of_the_documentation_runs(shards, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (example,) = re.findall(r"```python\n(import data_shards.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(shards.parent)
    shards.rename(shards.parent / "SHARDS")
    found: dict[str, object] = {}
    exec(compile(example, "docs/data.md", "exec"), found)
    assert found["seen"] == COUNTS["train"]
