"""The table of trials in the terminal: redrawn in place on a screen, a line per change in a log file."""

import math
import shutil
import sys
import time

from cluster.search.trial_records import TrialRecord
from cluster.search.values import Values

_SHOWN = 20


def short(value: object) -> str:
    """A value as it fits a column."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def describe(values: Values) -> str:
    """The values of a trial, keys without their section."""
    return " ".join(f"{_name(key)}={short(value)}" for key, value in values.items())


class LiveTable:
    """Shows trials while they run; holds no open file, so that Ray may pickle what holds it."""

    def __init__(self, num_trials: int, epochs: int) -> None:
        self._num_trials = num_trials
        self._epochs = epochs
        self._begin = time.monotonic()
        self._height = 0

    def show(self, records: list[TrialRecord], changed: TrialRecord) -> None:
        """Draw the table after a trial changed."""
        if sys.stdout.isatty():
            size = shutil.get_terminal_size()  # a line that wraps, or scrolls away, cannot be redrawn
            lines = [line[: size.columns - 1] for line in self.lines(records, size.columns - 1)[: size.lines - 1]]
            sys.stdout.write(f"\x1b[{self._height}A\x1b[J" if self._height else "")
            self._height = len(lines)
            print(*lines, sep="\n", flush=True)
        else:
            print(self._row(changed), flush=True)

    def lines(self, records: list[TrialRecord], width: int) -> list[str]:
        """The table, at most `width` characters wide: running trials and the best ones, a column per key.

        A key's name stands over its column in two lines; where columns do not fit, the last are left out and said so.
        """
        ordered = sorted(records, key=lambda r: (r.state != "running", r.best_loss, r.number))
        shown = ordered[:_SHOWN]
        keys = list(dict.fromkeys(key for record in records for key in record.values))
        columns = [_heading(name) for name in ("trial", "state", "epoch", "valid loss", *keys)]
        rows = [[*self._about(record), *(short(record.values.get(key, "")) for key in keys)] for record in shown]
        widths = [max(map(len, (*column, *(row[i] for row in rows)))) for i, column in enumerate(columns)]
        fitting = max((n for n in range(1, len(widths) + 1) if sum(widths[:n]) + 2 * (n - 1) <= width), default=1)
        ended = sum(record.state != "running" for record in records)
        seconds = time.monotonic() - self._begin
        head = f"{ended} of {self._num_trials} trials ended, {len(records) - ended} running, {seconds:.0f} s"
        table = [[column[0] for column in columns], [column[1] for column in columns], *rows]
        lines = ["  ".join(cell.rjust(widths[i]) for i, cell in enumerate(row[:fitting])).rstrip() for row in table]
        left_out = [_name(key) for key in keys[max(fitting - 4, 0) :]]
        more = [f"... and {len(ordered) - _SHOWN} more"] if len(ordered) > _SHOWN else []
        return [head, *lines, *more, *([f"not shown: {', '.join(left_out)}"] if left_out else [])]

    def _about(self, record: TrialRecord) -> list[str]:
        loss = f"{record.best_loss:.4f}" if math.isfinite(record.best_loss) else "-"
        return [str(record.number), record.state, f"{record.epoch}/{self._epochs}", loss]

    def _row(self, record: TrialRecord) -> str:
        number, state, epoch, loss = self._about(record)
        return f"{number:>5} {state:<9} {epoch:>7} {loss:>9}  {describe(record.values)}"


def _name(key: str) -> str:
    """A key without its section."""
    return key.rpartition(".")[2]


def _heading(key: str) -> tuple[str, str]:
    """A name in two lines, `learning` over `rate`."""
    first, _, second = _name(key).replace("_", " ").partition(" ")
    return (first, second) if second else ("", first)
