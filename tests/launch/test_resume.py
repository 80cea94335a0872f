"""A run that was stopped and continued is the run that never stopped: bitwise, or at other ranks within tolerance."""

from collections import Counter

import pytest
import torch

from data_shards.reading.reader import ShardReader
from dmd.checkpoint.format import newest_whole
from dmd.checkpoint.state import OBJECTIVE
from dmd.model.config import ModelConfig
from tests.support.ranks import assert_bitwise, assert_close, committed_samples, finish, last, losses, train
from tests.support.small_data import build_from, mmsa

pytestmark = pytest.mark.multiproc
SAVES = "train.save_every=2"


def test_bitwise_within_an_epoch_and_across_its_end(shards, reference, tmp_path):
    run = tmp_path / "run"
    for steps in (3, 5, 7):
        finish(shards, run, f"train.max_steps={steps}", ranks=2)
    finish(shards, run, ranks=2)
    assert_bitwise(run, reference(ranks=2))


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_writes_the_same_checkpoints_and_resumes_bitwise(shards, reference, tmp_path, stage):
    run, zero = tmp_path / "run", f"train.zero_stage={stage}"
    finish(shards, run, zero, "train.max_steps=3", ranks=2)
    finish(shards, run, zero, ranks=2)
    assert_bitwise(run, reference(zero, ranks=2))
    assert_close(run, reference(ranks=2))
    ours, plain = last(run), last(reference(ranks=2))
    for mine, its in ((ours.model, plain.model), (ours.optimizer, plain.optimizer)):
        assert {name: tensor.shape for name, tensor in mine.items()} == {name: t.shape for name, t in its.items()}


def test_elastic_over_ranks_and_stages(shards, reference, tmp_path):
    run, audit = tmp_path / "run", tmp_path / "audit"
    audit.mkdir()
    for ranks, stage, steps in ((2, 0, 2), (1, 2, 4), (3, 1, 7), (2, 2, 10)):
        overrides = (f"train.zero_stage={stage}", f"train.max_steps={steps}")
        finish(shards, run, *overrides, ranks=ranks, DMD_AUDIT=str(audit))
    assert_close(run, reference(ranks=1))
    with ShardReader(shards) as reader:
        split = Counter(reader.index.ids("train", range(reader.index.num_samples("train"))))
    steps = committed_samples(audit)
    assert sorted(steps) == [(step // 5, step + 1) for step in range(10)]
    for epoch in (0, 1):
        assert sum((ids for (of, _), ids in steps.items() if of == epoch), Counter()) == split


UNREAD = {"misa": ["levels"], "self_mm": ["dim", "heads", "levels"]}
"""Keys of `TINY` that another model than DMD does not read, which has to leave them at their defaults."""
MOVING = {"misa": (), "self_mm": ("self_mm.first_epoch=1",)}
"""What makes labels of single modalities move in the first epoch."""


@pytest.mark.parametrize("name", UNREAD)
def test_other_models_are_elastic_over_ranks_and_stages(tmp_path, name):
    """One rank; two ranks that divide the optimizer, stop inside the epoch and go on dividing the weights. The samples
    have few features, from which MISA's LSTMs have their widths."""
    build_from(mmsa(), tmp_path)
    shards = tmp_path / "shards"
    run, whole = tmp_path / "run", tmp_path / "whole"
    defaults = [f"model.{key}={getattr(ModelConfig(), key)}" for key in UNREAD[name]]
    small = ("train.ghost_batches_per_step=2", "train.epochs=1")
    overrides = (*defaults, f"model.name={name}", *MOVING[name], *small)
    finish(shards, whole, *overrides)
    for stage, *limit in ((1, "train.max_steps=2"), (3,)):
        ended = finish(shards, run, *overrides, f"train.zero_stage={stage}", *limit, ranks=2)
        assert "unknown inputs or outputs" not in ended.output, "a warning of ZeRO 3 that concerns no user"
    assert_close(run, whole)
    ours, plain = last(run).optimizer, last(whole).optimizer
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in plain.items()}
    remembered = [key for key in ours if key.startswith(OBJECTIVE)]
    assert bool(remembered) == (name == "self_mm")
    for key in remembered:
        torch.testing.assert_close(ours[key], plain[key], rtol=1e-3, atol=1e-5)
    if name == "self_mm":
        sentiments, *moved = ours[f"{OBJECTIVE}labels"]
        assert all(not labels.equal(sentiments) for labels in moved)


def test_elastic_where_ranks_share_a_ghost_batch(shards, tmp_path):
    """One rank, two of which one is killed, two again, one: the run of one rank, each sample once. The last ghost batch
    of the epoch has 7 samples: the second rank of two has none of them."""
    run, whole, audit = tmp_path / "run", tmp_path / "whole", tmp_path / "audit"
    audit.mkdir()
    shared = ("train.ghost_batch_size=15", "train.ghost_batches_per_step=1", "train.epochs=1", "train.save_every=2")
    finish(shards, whole, *shared)
    finish(shards, run, *shared, "train.max_steps=2", DMD_AUDIT=str(audit))
    killed = train(shards, run, *shared, "train.zero_stage=2", ranks=2, DMD_FAULT="step@4@1", DMD_AUDIT=str(audit))
    assert killed.codes == [69, 137], killed.output
    assert last(run).step == 4
    finish(shards, run, *shared, "train.zero_stage=1", "train.max_steps=6", ranks=2, DMD_AUDIT=str(audit))
    finish(shards, run, *shared, DMD_AUDIT=str(audit))
    assert_close(run, whole)
    steps = committed_samples(audit)
    assert sorted(steps) == [(0, step) for step in range(1, 9)]
    with ShardReader(shards) as reader:
        split = Counter(reader.index.ids("train", range(reader.index.num_samples("train"))))
    assert sum(steps.values(), Counter()) == split


def test_saving_by_minutes(shards, reference, tmp_path):
    """At each step when the minutes are over at once, which costs a killed run two steps at most; never in an hour."""
    often, seldom = tmp_path / "often", tmp_path / "seldom"
    for run, minutes, found in ((often, "1e-6", {2, 3}), (seldom, "60", {0})):
        ended = train(shards, run, f"train.save_minutes={minutes}", DMD_FAULT="step@4")
        assert ended.codes == [137], ended.output
        newest, skipped = newest_whole(run / "checkpoints")
        assert not skipped
        assert (int(newest.name.removeprefix("step_")) if newest else 0) in found
    finish(shards, often)
    assert_bitwise(often, reference())


def test_going_back_to_a_step_discards_what_came_later(shards, reference, tmp_path):
    run = tmp_path / "run"
    finish(shards, run, SAVES, "train.max_steps=8")
    rejected = train(shards, run, SAVES, resume="never")
    assert rejected.codes == [2]
    assert "--resume never would replace" in rejected.output
    missing = train(shards, run, SAVES, resume="7")
    assert missing.codes == [2]
    assert "there is no checkpoint of step 7" in missing.output
    assert "6, 8" in missing.output
    assert train(shards, run, SAVES, "train.max_steps=7", resume="6").codes == [0]
    assert last(run).step == 7
    finish(shards, run, SAVES)
    assert_bitwise(run, reference())


def test_an_average_resumes_bitwise_and_leaves_the_training_alone(shards, reference, tmp_path):
    run, plain = tmp_path / "run", reference(ranks=2)
    average = ("train.ema_decay=0.9", "train.zero_stage=1")
    for steps in (3, 7):
        finish(shards, run, *average, f"train.max_steps={steps}", ranks=2)
    finish(shards, run, *average, ranks=2)
    whole = reference(*average, ranks=2)
    assert_bitwise(run, whole)
    own, raw = last(whole), last(reference("train.zero_stage=1", ranks=2))
    assert losses(whole) == losses(reference("train.zero_stage=1", ranks=2))
    trained = {name.removeprefix("weights/"): t for name, t in own.optimizer.items() if name.startswith("weights/")}
    assert {name for name in raw.model if not torch.equal(raw.model[name], trained[name])} == set()
    assert any(not torch.equal(own.model[name], weight) for name, weight in trained.items())
    assert own.state["averaged_steps"] == 10
    assert last(plain).state["averaged_steps"] is None
    assert not any(name.startswith("weights/") for name in last(plain).optimizer)


def test_an_average_is_elastic_over_ranks_and_stages(shards, reference, tmp_path):
    run = tmp_path / "run"
    for ranks, stage, steps in ((2, 2, 3), (1, 0, 10)):
        overrides = ("train.ema_decay=0.9", f"train.zero_stage={stage}", f"train.max_steps={steps}")
        finish(shards, run, *overrides, ranks=ranks)
    assert_close(run, reference("train.ema_decay=0.9", ranks=1))
