"""Tables as text, laid out by rich: within the width of a terminal, and as wide as they are in a pipe or a file."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

GAP = 2
"""Columns between two columns of a table."""
_UNBOUNDED = 1 << 16
"""Columns of a text that nobody looks at in a window."""


def table_text(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = (), notes: Sequence[str] = ()
) -> str:
    """A table as text. Words that do not fit the width of the terminal go on in the next line; nothing is cut.

    Args:
        header: what stands above the columns.
        rows: a cell for each column.
        numbers: columns that are flush right, whose cells are not broken.
        notes: sentences below the table.
    """
    from rich.console import Console

    console = Console(width=terminal_width(), highlight=False)
    with console.capture() as captured:
        console.print(_table(header, rows, numbers))
        for note in notes:
            console.print(note, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def least_width(heading: str, cells: Sequence[str], *, is_number: bool) -> int:
    """Width in which a column of a table breaks no word."""
    from rich.console import Console

    table = _table([heading], [[cell] for cell in cells], (0,) if is_number else ())
    return Console(width=_UNBOUNDED).measure(table).minimum


def terminal_width() -> int:
    """Columns of the terminal that stdout is."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNBOUNDED


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for number, name in enumerate(header):
        least = max((len(row[number]) for row in rows), default=0) if number in numbers else None
        table.add_column(Text(name), justify="right" if number in numbers else "left", overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
