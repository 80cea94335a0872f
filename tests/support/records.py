"""A small record of a run, written by the test or by a process that it kills."""

from pathlib import Path

from dmd.training.logging.recorder import Recorder

CONFIG = {
    "model": {"dim": 50, "kernels": [5, 5, 5], "bert": None},
    "optimizer": {"lr": 1e-4, "name": "adam"},
    "ok": True,
}


def recorder(run: Path, resume_step: int | None = None, config: dict = CONFIG) -> Recorder:
    info = {"generation": "abc"}
    return Recorder(run, config=config, info=info, resume_step=resume_step, compare=["valid/mae", "final/mae"])


def train(record: Recorder, first: int, last: int) -> None:
    """Steps with a loss each, and a validation at every tenth."""
    for step in range(first, last + 1):
        record.scalars(step, {"loss": 1 / step, "lr": 1e-4}, kind="train")
        if step % 10 == 0:
            record.scalars(step, {"mae": 2 / step}, kind="valid")
