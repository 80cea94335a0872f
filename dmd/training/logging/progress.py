"""What is shown of a training while it runs: lines that are drawn on a terminal, and elsewhere a line now and then.

On a terminal three lines stay below what is printed: where the training stands in its epoch and how long it will take,
the losses of the last step, and what the validations gave. In a file or a pipe, and while another command has the
terminal, an epoch that takes long prints a line every `LINE_SECONDS`. Each epoch ends with a line of its numbers.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING

from data_shards.progress import LINE_SECONDS, duration
from data_shards.terminal import DrawnLines, Items, drawing_stream
from dmd.checkpoint.state import Cursor
from dmd.config import TrainConfig
from dmd.data.plan import EpochPlan
from dmd.losses.consistency import CONSISTENCY
from dmd.losses.model_objective import LossTerm
from dmd.metrics import Scoring, in_view, metric, show
from dmd.training.outcome import EpochReport
from dmd.training.pace import Pace
from dmd.training.schedule import Schedule

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN_TERMS = 6
"""Loss terms that are shown beside their weighted sum, at most."""
_SHOWN_FIRST = ("task_fused", "reconstruction", "margin", "homo_logit", "hetero_logit", CONSISTENCY.name)
"""Those that are shown where a training has them."""


@dataclass
class _Standing:
    """Where a training stands."""

    step: int
    cursor: Cursor
    values: dict[str, float] = field(default_factory=dict)
    samples_per_second: float = 0.0
    """Of the last steps that were measured."""
    of_epoch: float = 0.0
    """The same of all steps of the epoch whose validation is under way or has ended."""
    validated: int | None = None
    """Batches of the validation that is under way; None: there is none."""
    report: EpochReport | None = None
    """Of the last validation."""


class TrainingProgress:
    """What is shown of a training; nothing on a rank that does not write.

    Args:
        terms: of the model's objective.
        step: steps that were made before this session.
        cursor: where in the epoch it begins.
        to_validate: batches of a validation on this rank.
        ranks: how many there are, and on what they train.
        shown: whether anything is.
    """

    def __init__(
        self,
        config: TrainConfig,
        plan: EpochPlan,
        schedule: Schedule,
        scoring: Scoring,
        *,
        terms: Sequence[LossTerm],
        step: int,
        cursor: Cursor,
        to_validate: int,
        ranks: str,
        shown: bool,
    ) -> None:
        self._config = config
        self._plan = plan
        self._schedule = schedule
        self._scoring = scoring
        self._to_validate = to_validate
        self._ranks = ranks
        self._shown = shown
        self._standing = _Standing(step, cursor)
        self._steps = 0
        self._pace = Pace(steps_per_epoch=plan.num_steps, epochs=config.epochs, max_steps=config.max_steps)
        self._epoch_began = time.monotonic()
        self._told = self._epoch_began
        self._drawn: DrawnLines | None = None
        first = [term for term in terms if term.name in _SHOWN_FIRST]
        self._titles = {term.name: term.title for term in (*first, *(t for t in terms if t not in first))[:SHOWN_TERMS]}
        self._loss_title = next(row.title for row in scoring.rows() if row.is_loss)

    def __enter__(self) -> "TrainingProgress":
        if self._shown:
            plan, epochs = self._plan, self._config.epochs
            steps = f"{plan.num_samples} samples in {plan.num_steps} step{'s' * (plan.num_steps > 1)} an epoch"
            self._print(f"training on {self._ranks}: {steps}, {epochs} epochs at most")
        stream = drawing_stream() if self._shown else None
        if stream is not None:
            self._drawn = DrawnLines(stream, self.lines, ticks=True)
            self._drawn.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn is not None:
            self._drawn.__exit__(kind, error, trace)

    def begin_epoch(self) -> None:
        """The steps of an epoch, or of the rest of one, begin."""
        self._epoch_began = time.monotonic()
        self._pace.begin()

    def step(self, step: int, cursor: Cursor, values: dict[str, float], samples_per_second: float | None) -> None:
        """A step was made.

        Args:
            step: steps that were made.
            cursor: where in the epoch the next one is.
            values: as `StepResult.values`.
            samples_per_second: over all ranks; None: not measured at this step.
        """
        if not self._shown:
            return
        if self._steps:
            self._pace.step()
        else:
            self._pace.first_step()
        self._steps += 1
        now = self._standing
        now.step, now.cursor, now.values = step, cursor, values
        now.samples_per_second = samples_per_second or now.samples_per_second
        self._tell_now_and_then()

    def begin_validation(self, samples_per_second: float) -> None:
        """The validation begins.

        Args:
            samples_per_second: over all ranks, of all steps of the epoch that this session made.
        """
        self._standing.validated = 0
        self._standing.of_epoch = samples_per_second
        self._pace.begin()

    def validated(self) -> None:
        """A batch of the validation was handed to the device."""
        standing = self._standing
        standing.validated = (standing.validated or 0) + 1
        if self._shown:
            self._tell_now_and_then()

    def end_epoch(self, report: EpochReport, cursor: Cursor, *, best: bool) -> None:
        """The validation and what is done after it have ended: print the numbers of the epoch."""
        self._pace.validation()
        standing = self._standing
        standing.report, standing.validated = report, None
        if self._shown:
            self._print(self.epoch_line(report, best=best))
        standing.cursor = cursor

    def epoch_line(self, report: EpochReport, *, best: bool) -> str:
        """The line of an epoch; on a terminal without what it has no room for, and is drawn below."""
        standing = self._standing
        rows = [metric(name) for name in in_view("headline", report.metrics)]
        metrics = "  ".join(
            f"{row.title} {show(row.name, report.metrics[row.name], 2)}{' %' * (row.unit == '%')}" for row in rows
        )
        epoch = f"epoch {report.epoch:3d}/{self._config.epochs}"
        loss = f"loss {standing.values.get('total', math.nan):.3f}"
        took = duration(time.monotonic() - self._epoch_began)
        marked = ["best"] if best else []
        short = "  ".join([epoch, loss, f"valid {metrics}", *marked])
        protocol = f"valid ({self._scoring.protocol})"
        rates = [f"lr {self._learning_rate:.1e}", f"{standing.of_epoch:.3g} samples/s", took]
        whole = "  ".join([epoch, f"step {report.step:5d}", loss, f"{protocol} {metrics}", *rates, *marked])
        return short if self._drawn is not None and len(whole) > self._drawn.columns else whole

    @property
    def _learning_rate(self) -> float:
        return float(self._schedule.plateau.optimizer.param_groups[0]["lr"])

    def _tell_now_and_then(self) -> None:
        due = time.monotonic() - self._told > LINE_SECONDS
        if due and (self._drawn is None or not self._drawn.shown):
            where, losses, _ = self.facts()
            self._print("  " + ", ".join([*where, *losses[:2], *self._rates()]))

    def _print(self, line: str) -> None:
        print(line, flush=True)
        self._told = time.monotonic()

    def facts(self) -> tuple[list[str], list[str], list[str]]:
        """Where the training stands, the losses of its last step, what the validations gave."""
        standing = self._standing
        place, steps = standing.cursor.step, self._plan.num_steps
        where = [f"epoch {standing.cursor.epoch + 1} of {self._config.epochs}", f"step {place} of {steps}"]
        if standing.validated is not None:
            where[1] = f"validation {standing.validated} of {self._to_validate}"
        values = standing.values
        losses = [f"loss {values['total']:.3f}"] if values else []
        losses += [f"{title} {values[name]:.3f}" for name, title in self._titles.items() if name in values]
        return where, losses, self._validations()

    def _validations(self) -> list[str]:
        schedule, report = self._schedule, self._standing.report
        what = f"{self._loss_title} ({self._scoring.protocol})"
        found = [] if report is None else [f"valid {what} {report.loss:.4f}"]
        if schedule.best_epoch >= 0:
            name = "best" if found else f"best valid {what}"
            found.append(f"{name} {schedule.best_loss:.4f} in epoch {schedule.best_epoch + 1}")
        return found

    def _rates(self) -> list[str]:
        """Learning rate, speed, and how long it will take."""
        standing, pace = self._standing, self._pace
        place = standing.cursor.step
        rates = [f"lr {self._learning_rate:.1e}"]
        if standing.samples_per_second:
            rates.append(f"{standing.samples_per_second:.3g} samples/s")
        left, in_all = pace.left_in_epoch(place), pace.left(standing.step, standing.cursor.epoch, place)
        if left is not None and in_all is not None:
            rates.append(f"{duration(left)} left in the epoch, {duration(in_all)} at most in all")
        return rates

    def lines(self) -> "RenderableType":
        """What is drawn on a terminal."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        where, losses, validations = self.facts()
        standing = self._standing
        done, total = standing.cursor.step, self._plan.num_steps
        if standing.validated is not None:
            done, total = standing.validated, self._to_validate
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(Text(where[0], style="bold"), ProgressBar(total=total, completed=done), where[1])
        return Group(bar, *(Items(row) for row in (losses, [*validations, *self._rates()]) if row))
