"""Small runs for tests of what reads runs: trained through the loop itself, without a launcher."""

import json
from pathlib import Path

import torch

from dmd.cli import main
from dmd.config import Config
from dmd.presets import load_config
from dmd.training.checkpoint import Snapshot
from dmd.training.checkpoint_writer import write_checkpoint

SMALL = ("model.dim=8", "model.heads=2", "model.levels=1", "train.learning_rate=1e-3", "train.epochs=2")


def command(*arguments: object) -> int:
    """A `dmd` command in this process; its exit code."""
    return main([str(argument) for argument in arguments])


def config(*overrides: str) -> Config:
    return load_config(None, [*SMALL, *overrides])


def make_shards(path: Path, samples: int = 100, *more: str) -> Path:
    assert command("shard", "--synthetic", path, "--samples", samples, *more) == 0
    return path


def train(shards: Path, run: Path, *overrides: str) -> Path:
    """A run of two epochs by the real command, on one rank."""
    assert command("train", "--data", shards, "--run", run, "--ranks", 1, *SMALL, *overrides) == 0
    return run


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def damage_state(run: Path, to: Path) -> None:
    """A run whose only checkpoint claims another width than its weights have."""
    from dmd.training.restore import best_checkpoint

    snapshot = best_checkpoint(run)
    state = json.loads(json.dumps(snapshot.state))
    state["config"]["model"]["dim"] = 16
    to.mkdir(parents=True)
    write_checkpoint(to / "checkpoints", Snapshot(
        step=snapshot.step, model=snapshot.model, optimizer={"none": torch.zeros(1)}, state=state | {"best_step": None}
    ), keep=2)  # fmt: skip
