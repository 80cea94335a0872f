"""Tables as text, laid out by rich: within the width of a terminal, and as wide as they are in a pipe or a file."""

import shutil
import sys
import unicodedata
from collections.abc import Collection, Sequence
from typing import NamedTuple

GAP = 2
"""Columns between two columns of a table."""
_UNBOUNDED = 1 << 16
"""Columns of a text that nobody looks at in a window."""
_CONTROLS = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories: controls, surrogates (bytes of file names that are no text), ends of lines and of paragraphs."""


class Width(NamedTuple):
    """Between which widths a column of a table may lie."""

    least: int
    """That breaks no word, and no number."""
    most: int
    """That breaks no line."""


def table_text(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = (), notes: Sequence[str] = ()
) -> str:
    """A table as text. What does not fit the width of the terminal goes on in the next line; nothing is cut,
    and control characters are escaped.

    Args:
        header: what stands above the columns.
        rows: a cell for each column.
        numbers: columns that are flush right, whose cells are not broken.
        notes: sentences below the table.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    header, rows, notes = [*map(printable, header)], [[*map(printable, row)] for row in rows], [*map(printable, notes)]
    console = Console(width=terminal_width(), highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    columns = [[row[number] for row in rows] for number in range(len(header))]
    widths = _fitting(
        [
            width_of(name, cells, is_number=number in numbers)
            for number, (name, cells) in enumerate(zip(header, columns, strict=True))
        ],
        console.width,
    )
    for number, (name, width) in enumerate(zip(header, widths, strict=True)):
        justify = "right" if number in numbers else "left"
        table.add_column(Text(name), justify=justify, overflow="fold", width=width)  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(Text, row))
    with console.capture() as captured:
        console.print(table)
        for note in notes:
            console.print(note, markup=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def printable(text: str) -> str:
    """A text whose control characters, which a terminal would obey, are escaped as Python writes them."""
    return "".join(repr(sign)[1:-1] if unicodedata.category(sign) in _CONTROLS else sign for sign in text)


def width_of(heading: str, cells: Sequence[str], *, is_number: bool) -> Width:
    """The widths of a column; headings may be broken between their words, and so may cells that are no numbers."""
    from rich.cells import cell_len

    heading, cells = printable(heading), [*map(printable, cells)]
    words = [word for text in (heading, *([] if is_number else cells)) for word in text.split()]
    whole = list(cells) if is_number else []
    return Width(
        least=max(map(cell_len, [*words, *whole]), default=0), most=max(map(cell_len, [heading, *cells]), default=0)
    )


def terminal_width() -> int:
    """Columns of the terminal that stdout is."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNBOUNDED


def _fitting(widths: Sequence[Width], room: int) -> list[int | None]:
    """The width of each column within a room, which the first ones take what they can of; None of all where even the
    least ones do not fit."""
    left = room - sum(width.least for width in widths) - GAP * (len(widths) - 1)
    if left < 0:
        return [None] * len(widths)
    found: list[int | None] = []
    for width in widths:
        more = min(width.most - width.least, left)
        found.append(width.least + more)
        left -= more
    return found
