"""Reading ahead: the same batches for any number of reader threads, errors where they belong, nothing left running."""

import threading
import time
from dataclasses import fields

import numpy as np
import pytest
import torch

from data_shards.reading.reader import ShardReader
from data_shards.reading.shuffle import epoch_order
from data_shards.sources.synthetic import SyntheticSource
from data_shards.writing.build import build
from dmd.config import DataConfig
from dmd.data.loader import Batch, evaluation_batches, num_evaluation_batches, training_steps
from dmd.data.plan import EpochPlan


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader") / "shards"
    build(SyntheticSource(samples=730, steps=20, text_dim=8), root, samples_per_shard=30)
    return root


def _plan(reader, *, per_forward=2, ranks=1):
    return EpochPlan(
        num_samples=reader.index.num_samples("train"),
        ghost_batch_size=4,
        ghost_batches_per_step=3,
        ghost_batches_per_forward=per_forward,
        num_ranks=ranks,
    )


def _epoch(reader, plan, workers, *, how="random", rank=0, **key):
    config = DataConfig(workers=workers, window=4, reader=how)
    steps = training_steps(reader, plan, config, seed=5, rank=rank, epoch=2, **key)
    return [batch for batches in steps for batch in batches]


def _assert_equal(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert (one.ghosts, one.part) == (other.ghosts, other.part)
        for name in ("text", "audio", "vision", "labels", "mask", "rows"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def _readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith(("reader", "fetcher", "stream"))]


def test_every_field_of_a_batch_is_copied(shards):
    """Walks the dataclass, so that a field that is added to it cannot be forgotten."""
    with ShardReader(shards) as reader:
        batch = next(iter(evaluation_batches(reader, "valid", DataConfig(), batch_size=4)))
    copies = [batch.to(torch.device("cpu")), *([batch.pin_memory()] if torch.cuda.is_available() else [])]
    for copy in copies:
        for field in fields(Batch):
            before, after = getattr(batch, field.name), getattr(copy, field.name)
            assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after, field.name


def test_batches_do_not_depend_on_reader_threads(shards):
    """More steps than the order is computed for at once, and every batch held until the end."""
    with ShardReader(shards) as reader:
        plan = _plan(reader)
        alone = _epoch(reader, plan, 0)
        rows = torch.cat([batch.rows[batch.rows >= 0] for batch in alone])
        expected = epoch_order(
            np.arange(plan.num_samples), seed=5, epoch=2, num_samples=plan.num_samples, shard_size=30, window=4
        )
        assert rows.tolist() == expected.tolist()
        for workers in (1, 3):
            _assert_equal(_epoch(reader, plan, workers), alone)


@pytest.mark.parametrize("ranks", [1, 2, 5, 7])
def test_a_stream_gives_the_same_batches(shards, ranks):
    """Whole ghost batches and shared ones, ranks without work in the last step, any step first."""
    with ShardReader(shards) as reader:
        plan = _plan(reader, per_forward=1, ranks=ranks)
        for rank in {0, ranks // 2, ranks - 1}:
            whole = _epoch(reader, plan, 0, rank=rank)
            for workers in (0, 1, 3):
                _assert_equal(_epoch(reader, plan, workers, how="stream", rank=rank), whole)
            for first_step in (1, 32, plan.num_steps - 1):
                rest = _epoch(reader, plan, 1, how="stream", rank=rank, first_step=first_step)
                _assert_equal(rest, whole[first_step * plan.forwards_per_step :])


def test_ranks_that_share_a_ghost_batch_read_a_part_each(shards):
    """Of seven ranks three share one ghost batch: every sample once, in its place, with the labels of all. The last
    sample of a part fills its spare slots."""
    with ShardReader(shards) as reader:
        whole, plan = _epoch(reader, _plan(reader, per_forward=3), 0), _plan(reader, ranks=7)
        of_ranks = [
            list(training_steps(reader, plan, DataConfig(window=4), seed=5, rank=rank, epoch=2)) for rank in range(7)
        ]
        for step, batch in enumerate(whole):
            parts = [steps[step][0] for steps in of_ranks]
            assert [row for part in parts for row in part.own_rows()] == batch.own_rows()
            for part in parts:
                (ghost,), places = part.ghosts, part.part.places(4)
                number = max(ghost, 0)
                assert len(part.text) == part.part.slots(4) == {2: 2, 3: 2}[part.part.of]
                if ghost == -1:
                    continue
                for name in ("labels", "mask", "rows"):
                    given = getattr(batch, name)[number]
                    assert torch.equal(getattr(part, name)[0][given >= 0], given[given >= 0])
                kept = batch.mask[number, places.start : places.stop] > 0
                of_places = batch.text.unflatten(0, (3, 4))[number, places.start : places.stop]
                assert torch.equal(part.text[: len(places)][kept], of_places[kept])
                for spare in part.text[len(places) :]:
                    assert torch.equal(spare, part.text[len(places) - 1])


@pytest.mark.parametrize("first_step", [1, 31, 32, 33])
def test_an_epoch_resumes_at_any_step(shards, first_step):
    with ShardReader(shards) as reader:
        plan = _plan(reader, per_forward=3)
        assert plan.num_steps > 40
        whole, rest = _epoch(reader, plan, 0), _epoch(reader, plan, 2, first_step=first_step)
        assert [batch.rows.tolist() for batch in rest] == [batch.rows.tolist() for batch in whole[first_step:]]


def test_evaluation_reads_ahead_too(shards):
    with ShardReader(shards) as reader:
        runs = [
            list(evaluation_batches(reader, "test", DataConfig(workers=workers), batch_size=16)) for workers in (0, 2)
        ]
    assert [batch.rows.tolist() for batch in runs[0]] == [batch.rows.tolist() for batch in runs[1]]
    assert sum(int(batch.mask.sum()) for batch in runs[0]) == 146


def test_a_stream_evaluates_the_same_batches(shards):
    with ShardReader(shards) as reader:
        for rank in range(3):
            key = {"batch_size": 16, "numbers": range(rank, num_evaluation_batches(reader, "test", 16), 3)}
            stream, random = (
                list(evaluation_batches(reader, "test", DataConfig(reader=how), **key)) for how in ("stream", "random")
            )
            _assert_equal(stream, random)


@pytest.mark.parametrize("how", ["random", "stream"])
def test_a_reader_thread_hands_its_error_over_and_ends(shards, tmp_path, how):
    build(SyntheticSource(samples=60, steps=20, text_dim=8), tmp_path / "broken", samples_per_shard=10)
    next((tmp_path / "broken").glob("train-000002-*.tar")).unlink()
    with ShardReader(tmp_path / "broken") as reader, pytest.raises(ValueError, match="train-000002"):
        _epoch(reader, _plan(reader), 2, how=how)
    with ShardReader(shards) as reader:
        steps = training_steps(reader, _plan(reader), DataConfig(workers=2, reader=how), seed=0, rank=0, epoch=0)
        next(steps)
        assert _readers()
        del steps
    deadline = time.monotonic() + 60
    while _readers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _readers()
