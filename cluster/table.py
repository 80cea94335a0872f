"""The table of trials in the terminal: redrawn in place on a screen, a line per change in a log file."""

import math
import shutil
import sys
import time

from cluster.ledger import TrialRecord
from cluster.space import Values

_SHOWN = 20


def short(value: object) -> str:
    """A value as it fits a column."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def describe(values: Values) -> str:
    """The values of a trial, keys without their section."""
    return " ".join(f"{key.rpartition('.')[2]}={short(value)}" for key, value in values.items())


class LiveTable:
    """Shows trials while they run; holds no open file, so that Ray may pickle what holds it."""

    def __init__(self, num_trials: int, epochs: int) -> None:
        self._num_trials, self._epochs = num_trials, epochs
        self._begin, self._height = time.monotonic(), 0

    def show(self, records: list[TrialRecord], changed: TrialRecord) -> None:
        """Draw the table after a trial changed."""
        if sys.stdout.isatty():
            size = shutil.get_terminal_size()  # a line that wraps, or scrolls away, cannot be redrawn
            lines = [line[: size.columns - 1] for line in self.lines(records)[: size.lines - 1]]
            sys.stdout.write(f"\x1b[{self._height}A\x1b[J" if self._height else "")
            self._height = len(lines)
            print(*lines, sep="\n", flush=True)
        else:
            print(self._row(changed), flush=True)

    def lines(self, records: list[TrialRecord]) -> list[str]:
        """The table: running trials and the best ones."""
        ordered = sorted(records, key=lambda r: (r.state != "running", r.best_loss, r.number))
        ended = sum(record.state != "running" for record in records)
        seconds = time.monotonic() - self._begin
        head = f"{ended} of {self._num_trials} trials ended, {len(records) - ended} running, {seconds:.0f} s"
        rows = [self._row(record) for record in ordered[:_SHOWN]]
        more = [f"... and {len(ordered) - _SHOWN} more"] if len(ordered) > _SHOWN else []
        return [head, f"{'trial':>5} {'state':<9} {'epoch':>7} {'valid MAE':>9}  values", *rows, *more]

    def _row(self, record: TrialRecord) -> str:
        loss = f"{record.best_loss:.4f}" if math.isfinite(record.best_loss) else "-"
        return (
            f"{record.number:>5} {record.state:<9} {record.epoch:>3}/{self._epochs:<3} {loss:>9}  "
            f"{describe(record.values)}"
        )
