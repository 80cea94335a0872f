"""What is shown of an epoch while it runs: a bar on the terminal, and the numbers of its steps in the log."""

import time
from types import TracebackType
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from dmd.checkpoint.state import Cursor
from dmd.data.plan import EpochPlan
from dmd.training.schedule import Schedule
from dmd.training.step import StepResult

if TYPE_CHECKING:
    from dmd.training.logging.logbook import Logbook


class Progress:
    """The bar of one epoch; nothing on a rank without a log, and where stderr is no terminal."""

    def __init__(self, plan: EpochPlan, cursor: Cursor, log: "Logbook | None", log_every: int) -> None:
        self._log = log
        self._log_every = log_every
        self._bar = tqdm(
            total=plan.num_steps,
            initial=cursor.step,
            desc=f"epoch {cursor.epoch}",
            unit="step",
            leave=False,
            disable=True if log is None else None,
        )
        self._begin = time.perf_counter()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def step(
        self, step: int, result: StepResult, optimizer: torch.optim.Optimizer, samples: int, schedule: Schedule
    ) -> None:
        """Show a step that was made, and log it where it is due."""
        self._bar.update()
        if self._log is None or step % self._log_every:
            return
        now = time.perf_counter()
        rates = [group["lr"] for group in optimizer.param_groups]
        self._log.step(step, result.values, rates, samples * self._log_every / (now - self._begin))
        best = {"best_valid": f"{schedule.best_loss:.4f}"} if schedule.best_step >= 0 else {}
        self._bar.set_postfix({"loss": f"{result.values['total']:.3f}", **best})
        self._begin = now
