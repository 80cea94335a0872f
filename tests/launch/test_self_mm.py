"""Self-MM in a whole training: what it remembers of samples goes on bitwise after a stop."""

import pytest

import dmd
from dmd.config import load_config
from tests.support.ranks import assert_bitwise, last

TINY = [
    "model.name=self_mm",
    "model.text_dropout=0.1",
    *(
        f"self_mm.{name}=4"
        for name in ("text_lstm", "audio_lstm", "vision_lstm", "text_out", "audio_out", "vision_out", "fused_dim")
    ),
    "train.ghost_batch_size=8",
    "train.ghost_batches_per_step=4",
    "train.ghost_batches_per_forward=2",
    "train.ema_decay=0.9",
    "train.epochs=3",
    "train.learning_rate=0.01",
]
"""An epoch of the shards of the fixture has 4 steps."""

pytestmark = pytest.mark.usefixtures("interruptible")


def train(shards, run, *overrides):
    return dmd.train(load_config(None, [*TINY, *overrides]), data=shards, run=run)


def test_a_training_that_was_stopped_inside_an_epoch_ends_bitwise_equal(shards, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(shards, whole)
    train(shards, stopped, "train.max_steps=6")
    kept = last(stopped).optimizer
    train(shards, stopped)
    assert_bitwise(stopped, whole)
    end = last(whole).optimizer
    moved = [name for name in end if name.startswith("objective/") and not end[name].equal(kept[name])]
    assert {"objective/labels", "objective/features.fused", "objective/sums.text"} <= set(moved)
    assert not any(name.startswith("objective.") for name in last(whole).model)
