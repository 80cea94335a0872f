"""A table as LaTeX, for a paper: booktabs, the best of each compared column in bold, the second underlined.

`\\input` it where `\\usepackage{booktabs}` was said; `amssymb` too, where it has ✓. Ranks are those of the numbers as
they are shown, so that what looks alike is marked alike.
"""

import re

from dmd.report.tables import Table

OF_PAPERS = frozenset({"main", "summary", "bootstrap", "published", "ablation", "unimodal", "heads"})
"""The names of the tables that a paper may show."""
_MARKS = {1: "textbf: --rwrap;", 2: "underline: --rwrap;"}
"""Of a place in a column."""
_MINUS = re.compile(r"(?<![\w.-])-(?=[.\d∞])")
_NO_LABEL = re.compile(r"[^A-Za-z0-9_.-]")
_ARROWS = {True: " ↑", False: " ↓"}
_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "[": "{[}",
        "<": "$<$",
        ">": "$>$",
        "±": r"$\pm$",
        "−": "$-$",
        "×": r"$\times$",
        "–": "--",
        "…": r"\dots{}",
        "→": r"$\rightarrow$",
        "←": r"$\leftarrow$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "∞": r"$\infty$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "✓": r"\checkmark{}",
        "✗": r"$\times$",
    }
)
"""What LaTeX reads as a command, or its fonts lack. `[` behind the end of a row would be a length."""


def latex(table: Table, section: str) -> str:
    """A `table` environment with caption and label `tab:SECTION-NAME`; its header says of each compared column whether
    high or low is good."""
    from pandas import DataFrame
    from pandas.io.formats.style import Styler

    arrows = {column: _ARROWS[higher] for column, higher in table.directions.items()}
    header = [escaped(title + arrows.get(column, "")) for column, title in enumerate(table.header)]
    frame = DataFrame(table.rows, columns=range(len(header)), dtype=object)
    styler = Styler(frame).hide(axis="index").format(escaped).format_index(header.__getitem__, axis=1)
    for column in table.directions:
        styler = styler.apply(lambda cells: [_MARKS.get(rank, "") for rank in table.ranks(cells.name)], subset=[column])
    return styler.to_latex(
        hrules=True,
        column_format="".join("l" if table.words(column) or not column else "r" for column in range(len(header))),
        position="t",
        position_float="centering",
        caption=escaped(f"{table.title}. {table.note}".strip()),
        label=f"tab:{_NO_LABEL.sub('-', section)}-{table.name}",
    )


def escaped(text: str) -> str:
    """Text in which LaTeX reads no character as a command; a hyphen before a number is a minus."""
    return _MINUS.sub("−", text.replace(">=", "≥").replace("<=", "≤")).translate(_ESCAPES)
