"""Figures of the GD-Units: each edge over the training and all of them as matrices, always beside their prior.

The published objective pulls the edges toward a fixed prior; trained on noise alone they take the shape that the paper
shows as learned (docs/published-code.md#edges-and-their-prior). So no edge is drawn without its prior.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dmd.losses.distillation import make_prior
from dmd.model.config import MODALITIES
from dmd.model.graph import PAIRS
from dmd.report.runs import RunRecord
from dmd.report.style import COLOURS, INK, LOG_WIDTH, SOFT, SPACE_TITLE, new_figure

SPACES = ("homo", "hetero")


def prior_of(run: RunRecord, space: str) -> NDArray[np.float64]:
    """The prior [6] that the run's objective used; zeros for `objective.prior=none`."""
    return make_prior(str(run.config["objective"]["prior"]), space).double().numpy()


def last_edges(run: RunRecord, space: str) -> NDArray[np.float64] | None:
    """Edges [6] over the last tenth of the training, None where the run has none."""
    tags = [f"train/edges_{space}/{to}_from_{source}" for to, source in PAIRS]
    if any(tag not in run.curves for tag in tags):
        return None
    tail = max(1, len(run.curves[tags[0]].steps) // 10)
    return np.array([np.nanmean(run.curves[tag].values[-tail:]) for tag in tags])


def edge_curves(run: RunRecord) -> Figure | None:
    """Every edge over the steps (solid), its prior (dashed) and 1/6, where all edges start (dotted)."""
    spaces = [space for space in SPACES if last_edges(run, space) is not None]
    if not spaces:
        return None
    figure = new_figure(9.6, 2.1 * len(spaces) + 0.3)
    grid = figure.subplots(len(spaces), len(PAIRS), sharex=True, sharey=True, squeeze=False)
    for row, space in zip(grid, spaces, strict=True):
        prior = prior_of(run, space)
        for axes, (to, source), target in zip(row, PAIRS, prior, strict=True):
            curve = run.curves[f"train/edges_{space}/{to}_from_{source}"]
            axes.axhline(1 / len(PAIRS), color=SOFT, linestyle=":", linewidth=1, label="1/6, where edges start")
            if prior.any():
                axes.axhline(target, color=COLOURS[1], linestyle="--", linewidth=1.3, label="prior")
            axes.plot(curve.steps, curve.values, color=INK, label="edge")
            axes.set_title(f"{source} → {to}")
        row[0].set_ylabel(SPACE_TITLE[space].replace(" (", "\n("))
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def edge_heatmaps(
    edges: dict[str, NDArray[np.floating]], priors: dict[str, NDArray[np.floating]], *, narrow: bool = False
) -> Figure:
    """Matrices teacher (down) to student (across): the edges [6] of each space and, on its right, their prior.

    Args:
        narrow: one space below the other, for a log.
    """
    rows = len(edges) if narrow else 1
    figure = new_figure(LOG_WIDTH, 1.9 * rows) if narrow else new_figure(9.6, 2.7)
    panels = figure.subplots(rows, 2 * len(edges) // rows, squeeze=False).ravel()
    top = max(float(np.max(values)) for values in (*edges.values(), *priors.values()))
    for number, space in enumerate(edges):
        short = {"homo": "HomoGD", "hetero": "HeteroGD"}[space]
        draw_matrix(panels[2 * number], edges[space], f"{short}: edges", top, narrow=narrow)
        title = f"{short}: prior" if np.any(priors[space]) else f"{short}: no prior"
        draw_matrix(panels[2 * number + 1], priors[space], title, top, narrow=narrow)
    if narrow:
        for axes in panels:
            axes.label_outer()
    return figure


def draw_matrix(axes: Axes, values: NDArray[np.floating], title: str, top: float, *, narrow: bool) -> None:
    """Six edges as a 3x3 matrix with its numbers, where it is `narrow` without their zero before the point; the
    diagonal, which has no edge, stays empty."""
    matrix = np.full((len(MODALITIES),) * 2, np.nan)
    for (to, source), value in zip(PAIRS, values, strict=True):
        matrix[MODALITIES.index(source), MODALITIES.index(to)] = value
    axes.imshow(matrix, cmap="Greys", vmin=0, vmax=max(top, 1e-9) * 1.15)
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour, number = "white" if value > 0.55 * top else INK, f"{value:.3f}"
            axes.text(
                column,
                row,
                number.lstrip("0") if narrow else number,
                ha="center",
                va="center",
                color=colour,
                fontsize=9,
            )
    axes.set_xticks(range(3), [f"{m}" for m in MODALITIES])
    axes.set_yticks(range(3), [f"{m}" for m in MODALITIES])
    axes.set(title=title, xlabel="student", ylabel="teacher")
    axes.grid(visible=False)
