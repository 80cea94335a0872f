"""Figures of what a model predicts on a split: confusion, scatter, residuals, metrics of all heads."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dmd.report.inference import SplitResult
from dmd.report.style import COLOURS, HEAD_TITLE, INK, METRIC_TITLE, SOFT, grid_of, new_figure

CLASSES = np.arange(-3, 4)
"""The seven classes of Acc7."""


def to_class(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Clip to [-3, 3] and round half to even, as Acc7 does."""
    return np.round(np.clip(values, -3, 3)).astype(np.int64)


def confusion(result: SplitResult) -> NDArray[np.int64]:
    """Counts [7, 7]: true class down, predicted class across."""
    counts = np.zeros((7, 7), dtype=np.int64)
    np.add.at(counts, (to_class(result.labels) + 3, to_class(result.predictions["fused"]) + 3), 1)
    return counts


def prediction_figure(result: SplitResult) -> Figure:
    """Confusion over seven classes, predicted against true, and residuals by class."""
    figure = new_figure(9.8, 3.3)
    left, middle, right = figure.subplots(1, 3)
    counts = confusion(result)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    left.imshow(share, cmap="Greys", vmin=0, vmax=max(share.max(), 1e-9) * 1.15)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[row, column] > 0.55 * share.max() else INK
            left.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    left.set_xticks(range(7), [str(c) for c in CLASSES])
    left.set_yticks(range(7), [str(c) for c in CLASSES])
    left.set(title="samples by class; shade: share of row", xlabel="predicted class", ylabel="true class")
    left.grid(visible=False)
    prediction = result.predictions["fused"]
    middle.plot([-3, 3], [-3, 3], color=SOFT, linewidth=1, linestyle="--")
    middle.scatter(result.labels, prediction, s=12, color=INK, alpha=0.4, linewidths=0)
    reach = max(3.2, float(np.abs(prediction).max()) + 0.2)
    middle.set(title="predicted against true", xlabel="true sentiment", ylabel="predicted sentiment",
               xlim=(-3.3, 3.3), ylim=(-reach, reach))  # fmt: skip
    residual, classes = prediction - result.labels, to_class(result.labels)
    there = [c for c in CLASSES if (classes == c).any()]
    right.axhline(0, color=SOFT, linewidth=1, linestyle="--")
    boxes = right.boxplot([residual[classes == c] for c in there], positions=there, widths=0.6, patch_artist=True,
                          flierprops={"markersize": 3}, medianprops={"color": COLOURS[1]})  # fmt: skip
    for box in boxes["boxes"]:
        box.set(facecolor="#f3f4f6", edgecolor=INK)
    right.set(title="residuals by true class", xlabel="true class", ylabel="predicted - true")
    return figure


def scatter(labels: NDArray[np.floating], predictions: NDArray[np.floating], title: str) -> Figure:
    """Predicted against true, alone: for a log."""
    figure = new_figure(3.6, 3.4)
    axes = figure.subplots()
    axes.plot([-3, 3], [-3, 3], color=SOFT, linewidth=1, linestyle="--")
    axes.scatter(labels, predictions, s=10, color=INK, alpha=0.4, linewidths=0)
    axes.set(title=title, xlabel="true sentiment", ylabel="predicted sentiment")
    return figure


def heads_figure(result: SplitResult) -> Figure:
    """Four metrics of all eight heads as bars with their numbers."""
    names = ("mae", "corr", "acc2_non0", "acc7")
    figure = new_figure(9.8, 2.9)
    for axes, name in zip(grid_of(figure, len(names), 4, sharey=True), names, strict=True):
        values = [result.metrics[head][name] for head in HEAD_TITLE]
        shown = np.nan_to_num(values)
        colours = [INK if head == "fused" else "#9ca3af" for head in HEAD_TITLE]
        axes.barh(list(HEAD_TITLE.values()), shown, color=colours, height=0.65)
        span = max(float(np.abs(shown).max()), 1e-9)
        for row, value in enumerate(values):
            axes.text(max(shown[row], 0) + 0.02 * span, row, f"{value:.3f}", va="center", fontsize=8)
        axes.set_xlim(min(0.0, float(shown.min()) * 1.1), span * 1.25)
        axes.set_title(METRIC_TITLE[name])
        axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    return figure
