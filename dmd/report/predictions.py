"""Figures of what a model predicts on a split: confusion, scatter, residuals, metrics of all heads."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dmd.metrics import Scoring, heading, in_view, show, shown
from dmd.metrics import confusion as class_confusion
from dmd.metrics.emotions import EVEN
from dmd.model.network import FUSED
from dmd.report.inference import SplitResult
from dmd.report.style import COLOURS, INK, LOG_WIDTH, SOFT, grid_of, new_figure

LONG_NAME = 8
"""Characters from which names below an axis are turned."""
LONG_AXIS = 30
"""Characters of all names, each as long as the longest, from which they are turned."""


def fine_classes(values: NDArray[np.floating], scoring: Scoring) -> NDArray[np.int64]:
    """The most classes that the protocol has, of sentiments in the units of the source."""
    return scoring.to_fine_classes(torch.from_numpy(values)).numpy()


def confusion(result: SplitResult) -> NDArray[np.int64]:
    """Counts [classes, classes], of a regression in the most classes of its protocol: true class down, predicted class
    across."""
    scoring = result.scoring
    if scoring.kind == "classes":
        return class_confusion(*map(torch.from_numpy, (result.predictions["fused"], result.labels))).long().numpy()
    count = len(scoring.fine_classes)
    counts = np.zeros((count, count), dtype=np.int64)
    np.add.at(counts, (fine_classes(result.labels, scoring), fine_classes(result.answers, scoring)), 1)
    return counts


def draw_confusion(axes: Axes, counts: NDArray[np.int64], names: Sequence[str]) -> None:
    """Counts in their cells; the shade is the share of the row."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Greys", vmin=0, vmax=max(share.max(), 1e-9) * 1.15)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[row, column] > 0.55 * share.max() else INK
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    name_ticks(axes, range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(title="samples by class; shade: share of row", xlabel="predicted class", ylabel="true class")
    axes.grid(visible=False)


def confusion_figure(counts: NDArray[np.int64], names: Sequence[str]) -> Figure:
    """The confusion of a classifier, alone: for a log."""
    figure = new_figure(LOG_WIDTH, 3.3)
    draw_confusion(figure.subplots(), counts, names)
    return figure


def class_figure(result: SplitResult) -> Figure:
    """Of a classifier: confusion, how often each class is true and predicted, and the probability of the true class."""
    names, count = result.scoring.titles, result.scoring.outputs
    figure = new_figure(9.8, 3.3)
    left, middle, right = figure.subplots(1, 3)
    counts, places = confusion(result), np.arange(count)
    draw_confusion(left, counts, names)
    draw_shares(middle, [counts.sum(axis) / counts.sum() for axis in (1, 0)], names, "class")
    labels = result.labels.astype(np.int64)
    of_true = result.probabilities[np.arange(len(labels)), labels]
    there = [number for number in range(count) if (labels == number).any()]
    right.axhline(1 / count, color=SOFT, linewidth=1, linestyle="--")
    draw_boxes(right, [of_true[labels == number] for number in there], there)
    name_ticks(right, places.tolist(), names)
    right.set(title="probability of the true class", xlabel="true class", ylim=(-0.02, 1.02))
    return figure


def name_ticks(axes: Axes, places: Sequence[int], names: Sequence[str]) -> None:
    """Names below an axis, turned where they would run into each other."""
    longest = max(map(len, names), default=0)
    turned = longest > LONG_NAME or longest * len(names) > LONG_AXIS
    axes.set_xticks(places, names, rotation=45 if turned else 0)


def draw_shares(axes: Axes, shares: Sequence[NDArray[np.floating]], names: Sequence[str], what: str) -> None:
    """Bars of how often each class or emotion is true, and how often it is predicted."""
    places = np.arange(len(names))
    for shift, share, colour, label in zip((-0.2, 0.2), shares, (INK, COLOURS[2]), ("true", "predicted"), strict=True):
        axes.bar(places + shift, share, 0.4, color=colour, label=label)
    name_ticks(axes, places.tolist(), names)
    axes.set(title=f"share of samples by {what}", xlabel=what)
    axes.legend()


def emotion_figure(
    labels: NDArray[np.floating], probabilities: NDArray[np.floating], names: Sequence[str], *, narrow: bool = False
) -> Figure:
    """Of emotions [N, L]: how often each is there and said, and its probability where it is there and where not.

    Args:
        narrow: one below the other, for a log.
    """
    figure = new_figure(LOG_WIDTH, 5.6) if narrow else new_figure(9.8, 3.3)
    left, right = figure.subplots(2, 1) if narrow else figure.subplots(1, 2)
    has = labels > 0
    draw_shares(left, [has.mean(0), (probabilities > EVEN).mean(0)], names, "emotion")
    right.axhline(EVEN, color=SOFT, linewidth=1, linestyle="--")
    for shift, chosen in ((-0.2, has), (0.2, ~has)):
        there = [number for number in range(len(names)) if chosen[:, number].any()]
        values = [probabilities[chosen[:, number], number] for number in there]
        draw_boxes(right, values, [number + shift for number in there], width=0.3)
    name_ticks(right, range(len(names)), names)
    right.set(title="probability where it is there (left) and where not", xlabel="emotion", ylim=(-0.02, 1.02))
    return figure


def draw_boxes(
    axes: Axes, values: Sequence[NDArray[np.floating]], places: Sequence[float], *, width: float = 0.6
) -> None:
    """A box per class; none where there are no classes."""
    if not places:
        return
    boxes = axes.boxplot(
        values,
        positions=places,
        widths=width,
        patch_artist=True,
        flierprops={"markersize": 3},
        medianprops={"color": COLOURS[1]},
    )
    for box in boxes["boxes"]:
        box.set(facecolor="#f3f4f6", edgecolor=INK)


def prediction_figure(result: SplitResult) -> Figure:
    """Confusion over the classes of the protocol, predicted against true, and residuals by class; `class_figure` of a
    classifier, `emotion_figure` of emotions."""
    scoring = result.scoring
    if scoring.kind == "classes":
        return class_figure(result)
    if scoring.kind == "multilabel":
        return emotion_figure(result.labels, result.probabilities, scoring.titles)
    figure = new_figure(9.8, 3.3)
    left, middle, right = figure.subplots(1, 3)
    draw_confusion(left, confusion(result), scoring.fine_classes)
    prediction = result.predictions["fused"]
    _draw_scatter(middle, result.labels, prediction, scoring)
    middle.set(title="predicted against true")
    residual, classes = prediction - result.labels, fine_classes(result.labels, scoring)
    there = [number for number in range(len(scoring.fine_classes)) if (classes == number).any()]
    right.axhline(0, color=SOFT, linewidth=1, linestyle="--")
    draw_boxes(right, [residual[classes == number] for number in there], there)
    name_ticks(right, there, [scoring.fine_classes[number] for number in there])
    right.set(title="residuals by true class", xlabel="true class", ylabel="predicted - true")
    return figure


def scatter(labels: NDArray[np.floating], predictions: NDArray[np.floating], title: str, scoring: Scoring) -> Figure:
    """Predicted against true, alone: for a log."""
    figure = new_figure(LOG_WIDTH, 3.3)
    axes = figure.subplots()
    _draw_scatter(axes, labels, predictions, scoring)
    axes.set(title=title)
    return figure


def _draw_scatter(
    axes: Axes, labels: NDArray[np.floating], predictions: NDArray[np.floating], scoring: Scoring
) -> None:
    """Sentiments in the units of the source, whose range is that of the labels, or of the predictions if these go
    beyond."""
    low, high = scoring.limits
    margin = (high - low) / 20
    axes.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle="--")
    axes.scatter(labels, predictions, s=12, color=INK, alpha=0.4, linewidths=0)
    axes.set(
        xlabel="true sentiment",
        ylabel="predicted sentiment",
        xlim=(low - margin, high + margin),
        ylim=(min(low, float(predictions.min())) - margin, max(high, float(predictions.max())) + margin),
    )


def heads_figure(result: SplitResult) -> Figure:
    """The headline metrics of all heads as bars with their numbers."""
    names = in_view("headline", result.metrics["fused"])
    figure = new_figure(9.8, 2.9)
    for axes, name in zip(grid_of(figure, len(names), len(names), sharey=True), names, strict=True):
        values = [result.metrics[head][name] for head in result.predictions]
        widths = np.nan_to_num([shown(name, value) for value in values])
        colours = [INK if head == FUSED else "#9ca3af" for head in result.predictions]
        axes.barh([result.titles.get(head, head) for head in result.predictions], widths, color=colours, height=0.65)
        span = max(float(np.abs(widths).max()), 1e-9)
        for row, value in enumerate(values):
            axes.text(max(widths[row], 0) + 0.02 * span, row, show(name, value), va="center", fontsize=8)
        axes.set_xlim(min(0.0, float(widths.min()) * 1.1), span * 1.25)
        axes.set_title(heading(name))
        axes.grid(visible=False, axis="y")
    axes.invert_yaxis()
    return figure
