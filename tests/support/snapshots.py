"""Small snapshots, and what the checkpoint tests ask of directories."""

import math
from pathlib import Path

import torch

from dmd.checkpoint.format import Snapshot, checkpoint_paths
from dmd.checkpoint.writer import write_checkpoint


def snapshot(step: int, best: int | None = None, salt: int = 0, size: int = 64) -> Snapshot:
    generator = torch.Generator().manual_seed(step + 1000 * salt)
    weight = torch.randn(size, 4, generator=generator)
    return Snapshot(
        step=step,
        model={"dmd.head.weight": weight, "homo.scale": torch.tensor(2.5)},
        optimizer={"exp_avg/dmd.head.weight": weight * 2, "step/dmd.head.weight": torch.tensor(step)},
        state={"cursor": {"epoch": 1, "step": step}, "best": math.inf, "best_step": best, "salt": salt},
    )


def equal(one: Snapshot, other: Snapshot) -> bool:
    def tensors(a: dict, b: dict) -> bool:
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    same = tensors(one.model, other.model) and tensors(one.optimizer, other.optimizer)
    return same and one.step == other.step and one.state == other.state


def steps(root: Path) -> list[int]:
    return list(checkpoint_paths(root))


def hidden(root: Path) -> list[str]:
    return [path.name for path in root.iterdir() if path.name.startswith(".")]


def three_checkpoints(run: Path) -> Path:
    """RUN/checkpoints with the steps 10, 20 and 30; 10 is the best."""
    for step in (10, 20, 30):
        write_checkpoint(run / "checkpoints", snapshot(step, best=10), keep=2)
    return run / "checkpoints"
