"""How far a command is with work that it counts: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from data_shards.terminal import REFRESH_SECONDS, DrawnLines, drawing_stream

if TYPE_CHECKING:
    from rich.table import Table

Entered = TypeVar("Entered", bound="Progress")
LINE_SECONDS = 30.0
"""Between two lines, where no terminal shows a bar."""


def duration(seconds: float, *, fine: bool = False) -> str:
    """A time as hours, minutes and seconds.

    Args:
        fine: tenths of a second or milliseconds of what is shorter than a minute.
    """
    if fine and seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Counts what is done, for the length of a block.

    Args:
        total: how many there are; None: nobody knows.
        unit: what they are called, in the plural.
    """

    def __init__(self, total: int | None, unit: str) -> None:
        self._total = total
        self._unit = unit
        self._begin = time.monotonic()
        self._told = self._begin
        stream = drawing_stream()
        self._lines = None if stream is None else DrawnLines(stream, self._bar, ticks=False)
        self.done = 0
        self.note = ""
        """What else is to be said."""

    def __enter__(self: Entered) -> Entered:
        if self._lines is not None:
            self._lines.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.__exit__(kind, error, trace)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return max(time.monotonic() - self._begin, 1e-9)

    def advance(self, count: int = 1, note: str = "") -> None:
        """So many more are done."""
        self.set(self.done + count, note)

    def set(self, done: int, note: str = "") -> None:
        """So many are done."""
        self.done, self.note = done, note
        now = time.monotonic()
        if now - self._told < (LINE_SECONDS if self._lines is None else REFRESH_SECONDS):
            return
        self._told = now
        if self._lines is not None:
            self._lines.draw()
        else:
            print(", ".join(self._facts()), file=sys.stderr, flush=True)

    def _facts(self) -> list[str]:
        of = "" if self._total is None else f" of {self._total}"
        facts = [f"{self.done}{of} {self._unit}", f"{self.done / self.seconds:.3g} a second"]
        if self.note:
            facts.append(self.note)
        if self._total is not None and self.done:
            left = self.seconds / self.done * (self._total - self.done)
            facts.append(f"{duration(left)} left")
        return facts

    def _bar(self) -> "Table":
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        line = Table.grid(padding=(0, 2), expand=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(ProgressBar(total=self._total, completed=self.done), "  ".join(self._facts()))
        return line
