"""How figures look: fonts, sizes, and colours that stay apart in grey and for colour-blind readers."""

from textwrap import wrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_shards.figures import AnyScriptFigure

INK, SOFT, GRID = "#1a1a1a", "#6b7280", "#e5e7eb"
COLOURS = ("#0b3c5d", "#d1495b", "#edae49")
"""Dark blue, red, light yellow-orange: three distinct greys when printed."""
LOG_WIDTH = 3.5
"""Inches of a figure for a log, at 100 dots: TensorBoard's cards are 350 dots wide and make wider pictures smaller."""
MARKERS = ("o", "^", "s")
DASHES: tuple[str, ...] = ("-", "--", ":", "-.")
SEQUENTIAL = "cividis"
RC = {
    "font.size": 9,
    "text.parse_math": False,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "dmd",
    "figure.dpi": 100,
    "lines.linewidth": 1.4,
}
"""Settings for `matplotlib.rc_context`."""
SPACE_TITLE = {"homo": "homogeneous (HomoGD)", "hetero": "heterogeneous (HeteroGD)"}


def in_lines(name: str, width: int) -> str:
    """A name in lines of at most so many characters, broken between its words alone."""
    return "\n".join(wrap(name, width, break_long_words=False, break_on_hyphens=False))


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches that lays itself out; it belongs to no window and no global state."""
    return AnyScriptFigure(figsize=(width, height), layout="constrained")


def grid_of(figure: Figure, count: int, columns: int, **options: bool) -> list[Axes]:
    """`count` axes in rows of `columns`; above an empty place of the last row, tick labels stay."""
    rows = -(-count // columns)
    axes = figure.subplots(rows, columns, squeeze=False, **options)  # type: ignore[call-overload]
    flat: list[Axes] = list(axes.flat)
    for number, extra in enumerate(flat[count:], count):
        extra.set_axis_off()
        if number >= columns:
            flat[number - columns].tick_params(labelbottom=True)
    return flat[:count]
