"""Training around a captured pass, where the pass is computed again instead of replayed: there is no CUDA here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.counting import Counter
from benchmarks.replayed_nowhere import ReplayedNowhere
from dmd.config.loading import load_config
from dmd.data.loader import training_steps
from dmd.kernels.dropout.keys import DropoutKeys
from dmd.system.cuda_graph import CapturedPass
from dmd.training.step import train_step
from launch.trainer.build import build_system
from launch.trainer.engine import DeepSpeedEngine
from launch.trainer.preflight import open_shards, plan_training
from tests.support.ranks import TINY, on_ranks

CPU = torch.device("cpu")
STAGES = (0, 2)
"""Of ZeRO: weights are joined at the first, and each is alone at the other."""
BUCKETS = "train.reduce_bucket_mb=0.01"
"""Joined weights of up to 2,500 elements, and larger ones alone."""


class ComputedAgain(CapturedPass):
    """Computes where a graph would be replayed: over tensors alone, of which the joined weights are some."""

    def _graphed(
        self, run: Callable[..., tuple[Tensor, Tensor]], samples: tuple[Tensor, ...]
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        return run


def make_engine(folder: Path, ranks: int, kind: type[CapturedPass] | None, *overrides: str) -> tuple[Any, ...]:
    """An engine whose steps are one pass, its config, reader and plan."""
    config = load_config(None, ["model.task=regression", *TINY, "train.ghost_batches_per_forward=6", *overrides])
    reader = open_shards(folder / "shards", config)
    plan = plan_training(config, reader, folder / "run", ranks)
    system, _ = build_system(config, reader.index.info, CPU)
    if kind is not None:
        system.keys = DropoutKeys()
        system._graph = kind(system.terms, system, lambda: system.weights)
    return DeepSpeedEngine(system.train(), config, plan, CPU), config, reader, plan


def _trained(rank: int, folder: Path) -> dict[str, Any]:
    """Weights, moments and numbers of three steps, with our reduction and with DeepSpeed's, of both kinds of passes."""
    found = {}
    for stage in STAGES:
        for kind in (None, ComputedAgain):
            engine, config, reader, plan = make_engine(folder, 2, kind, f"train.zero_stage={stage}", BUCKETS)
            values = []
            steps = training_steps(reader, plan, config.data, seed=0, rank=rank, epoch=0)
            for step, passes in zip(range(3), steps, strict=False):
                result = train_step(engine, passes, config, plan, step=step, step_in_epoch=step)
                assert result.applied
                values.append(result.values)
            name = "captured" if kind else "eager"
            found[f"{name} {stage}"] = {
                "values": values,
                "state": engine.optimizer_state() | {k: v.clone() for k, v in engine.system.state_dict().items()},
            }
            if kind is not None:
                assert engine.system._graph._replay is not None, "nothing was captured"
            if stage == 0:
                sizes = [len(weights.parameters) for weights in engine.system.weights]
                assert min(sizes) == 1
                assert max(sizes) > 10
    return found


@pytest.mark.multiproc
@pytest.mark.slow
def test_two_ranks_train_with_a_captured_pass_as_without(shards, tmp_path):
    """Bitwise, whether autograd gives the gradients of a bucket as one tensor or one by one."""
    (tmp_path / "shards").symlink_to(shards)
    for found in on_ranks(_trained, tmp_path):
        for stage in STAGES:
            eager, captured = found[f"eager {stage}"], found[f"captured {stage}"]
            assert captured["values"] == eager["values"]
            assert captured["state"].keys() == eager["state"].keys()
            assert all(captured["state"][name].equal(tensor) for name, tensor in eager["state"].items())
            for one, other in zip(eager["values"], found["eager 2"]["values"], strict=True):
                assert one == pytest.approx(other, rel=1e-5)


def _operations(_: int, folder: Path) -> dict[str, Any]:
    """Operations of torch around the replays of a step, and how many weights there are."""
    found = {}
    for levels in (1, 3):
        engine, config, reader, plan = make_engine(folder, 1, ReplayedNowhere, f"model.levels={levels}")
        steps = training_steps(reader, plan, config.data, seed=0, rank=0, epoch=0)
        for step, passes in zip(range(3), steps, strict=False):
            with Counter() as counter:
                train_step(engine, passes, config, plan, step=step, step_in_epoch=step)
        found[levels] = {"operations": counter.names.total(), "weights": len(list(engine.system.parameters()))}
    return found


@pytest.mark.multiproc
@pytest.mark.slow
def test_the_work_around_a_replay_does_not_grow_with_the_number_of_weights(shards, tmp_path):
    (tmp_path / "shards").symlink_to(shards)
    ((small, large),) = [found.values() for found in on_ranks(_operations, tmp_path, 1)]
    assert large["weights"] > small["weights"] + 30
    assert large["operations"] == small["operations"]
