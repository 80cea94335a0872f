"""Figures of what a model predicts on a split: confusion, scatter, residuals, metrics of all heads."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dmd.metrics import class_names, heading, in_view, show, shown
from dmd.metrics import confusion as class_confusion
from dmd.model.dmd import HEADS
from dmd.report.inference import SplitResult
from dmd.report.style import COLOURS, INK, SOFT, grid_of, new_figure

CLASSES = np.arange(-3, 4)
"""The seven classes of Acc7."""


def to_class(values: NDArray[np.floating]) -> NDArray[np.int64]:
    """Clip to [-3, 3] and round half to even, as Acc7 does."""
    return np.round(np.clip(values, -3, 3)).astype(np.int64)


def confusion(result: SplitResult) -> NDArray[np.int64]:
    """Counts [classes, classes], seven of a regression: true class down, predicted class across."""
    if result.classes:
        return class_confusion(*map(torch.from_numpy, (result.predictions["fused"], result.labels))).long().numpy()
    counts = np.zeros((7, 7), dtype=np.int64)
    np.add.at(counts, (to_class(result.labels) + 3, to_class(result.predictions["fused"]) + 3), 1)
    return counts


def draw_confusion(axes: Axes, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """Counts in their cells; the shade is the share of the row."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Greys", vmin=0, vmax=max(share.max(), 1e-9) * 1.15)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[row, column] > 0.55 * share.max() else INK
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(title="samples by class; shade: share of row", xlabel="predicted class", ylabel="true class")
    axes.grid(visible=False)


def confusion_figure(counts: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """The confusion of a classifier, alone: for a log."""
    figure = new_figure(4.2, 3.8)
    draw_confusion(figure.subplots(), counts, names)
    return figure


def class_figure(result: SplitResult) -> Figure:
    """Of a classifier: confusion, how often each class is true and predicted, and the probability of the true class."""
    names = class_names(result.classes)
    figure = new_figure(9.8, 3.3)
    left, middle, right = figure.subplots(1, 3)
    counts, places = confusion(result), np.arange(result.classes)
    draw_confusion(left, counts, names)
    for shift, axis, colour, label in ((-0.2, 1, INK, "true"), (0.2, 0, COLOURS[2], "predicted")):
        middle.bar(places + shift, counts.sum(axis) / counts.sum(), 0.4, color=colour, label=label)
    middle.set_xticks(places, names)
    middle.set(title="share of samples by class", xlabel="class")
    middle.legend()
    logits = torch.from_numpy(result.predictions["fused"])
    labels = result.labels.astype(np.int64)
    of_true = logits.softmax(-1).numpy()[np.arange(len(labels)), labels]
    there = [number for number in range(result.classes) if (labels == number).any()]
    right.axhline(1 / result.classes, color=SOFT, linewidth=1, linestyle="--")
    draw_boxes(right, [of_true[labels == number] for number in there], there)
    right.set_xticks(places, names)
    right.set(title="probability of the true class", xlabel="true class", ylim=(-0.02, 1.02))
    return figure


def draw_boxes(axes: Axes, values: Sequence[NDArray[np.floating]], places: Sequence[int]) -> None:
    """A box per class."""
    boxes = axes.boxplot(
        values,
        positions=places,
        widths=0.6,
        patch_artist=True,
        flierprops={"markersize": 3},
        medianprops={"color": COLOURS[1]},
    )
    for box in boxes["boxes"]:
        box.set(facecolor="#f3f4f6", edgecolor=INK)


def prediction_figure(result: SplitResult) -> Figure:
    """Confusion over seven classes, predicted against true, and residuals by class; `class_figure` of a classifier."""
    if result.classes:
        return class_figure(result)
    figure = new_figure(9.8, 3.3)
    left, middle, right = figure.subplots(1, 3)
    draw_confusion(left, confusion(result), [str(c) for c in CLASSES])
    prediction = result.predictions["fused"]
    middle.plot([-3, 3], [-3, 3], color=SOFT, linewidth=1, linestyle="--")
    middle.scatter(result.labels, prediction, s=12, color=INK, alpha=0.4, linewidths=0)
    reach = max(3.2, float(np.abs(prediction).max()) + 0.2)
    middle.set(
        title="predicted against true",
        xlabel="true sentiment",
        ylabel="predicted sentiment",
        xlim=(-3.3, 3.3),
        ylim=(-reach, reach),
    )
    residual, classes = prediction - result.labels, to_class(result.labels)
    there = [int(c) for c in CLASSES if (classes == c).any()]
    right.axhline(0, color=SOFT, linewidth=1, linestyle="--")
    draw_boxes(right, [residual[classes == c] for c in there], there)
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
    """The headline metrics of all heads as bars with their numbers."""
    names = in_view("headline", result.metrics["fused"])
    figure = new_figure(9.8, 2.9)
    for axes, name in zip(grid_of(figure, len(names), len(names), sharey=True), names, strict=True):
        values = [result.metrics[head][name] for head in HEADS]
        widths = np.nan_to_num([shown(name, value) for value in values])
        colours = [INK if head == "fused" else "#9ca3af" for head in HEADS]
        axes.barh([head.title for head in HEADS.values()], widths, color=colours, height=0.65)
        span = max(float(np.abs(widths).max()), 1e-9)
        for row, value in enumerate(values):
            axes.text(max(widths[row], 0) + 0.02 * span, row, show(name, value), va="center", fontsize=8)
        axes.set_xlim(min(0.0, float(widths.min()) * 1.1), span * 1.25)
        axes.set_title(heading(name))
        axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    return figure
