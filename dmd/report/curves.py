"""Figures of a training over its steps: is it learning, every loss term, validation metrics, seeds together."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from dmd.metrics import heading, known_metrics, shown
from dmd.report.runs import Curve, RunRecord
from dmd.report.style import COLOURS, DASHES, INK, SOFT, grid_of, in_lines, new_figure

_NAME = 42
"""Characters of a line of a config's name above a panel."""


def smooth(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Centred running mean over `width` values, shorter at both ends; NaN counts as absent."""
    known = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, values, 0), kernel, mode="same")
    count = np.convolve(known, kernel, mode="same")
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def learning(run: RunRecord) -> Figure:
    """Training and validation loss, with the best epoch marked."""
    figure = new_figure(9, 2.7)
    left, right = figure.subplots(1, 2)
    total = run.curves["train/total"]
    left.plot(total.steps, total.values, color=SOFT, linewidth=0.7, label="each step")
    left.plot(total.steps, smooth(total.values, _width(total)), color=INK, label="running mean")
    left.set(title="training objective", xlabel="step")
    _headroom(left, total.values)
    left.legend()
    valid = run.curves["valid/loss"]
    step, loss = run.best()
    right.plot(valid.steps, valid.values, color=INK, marker="o", markersize=3)
    right.axvline(step, color=COLOURS[1], linestyle="--", linewidth=1)
    right.set(title=f"validation {run.loss_title}; best {loss:.4f} at step {step}", xlabel="step")
    return figure


def loss_terms(run: RunRecord) -> Figure:
    """Every loss term, the gradient norm and the learning rate, a panel each."""
    titles = run.term_titles
    tags = [tag for tag in run.curves if tag in titles]
    tags += [tag for tag in ("train/gradient_norm", "train/learning_rate") if tag in run.curves]
    figure = new_figure(9.6, 1.55 * -(-len(tags) // 4))
    for axes, tag in zip(grid_of(figure, len(tags), 4, sharex=True), tags, strict=True):
        curve = run.curves[tag]
        rate = tag == "train/learning_rate"
        axes.plot(curve.steps, curve.values, color=INK if rate else SOFT, linewidth=1.2 if rate else 0.5)
        if not rate:
            axes.plot(curve.steps, smooth(curve.values, _width(curve)), color=INK, linewidth=1.2)
        axes.set_title(titles.get(tag) or tag.removeprefix("train/").replace("_", " "))
        if tag == "train/gradient_norm":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter())  # the default one spells powers as mathematics
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
        else:
            _headroom(axes, curve.values)
    return figure


def validation_metrics(run: RunRecord) -> Figure:
    """Validation metrics of the fused prediction, a panel each."""
    names = known_metrics([tag.removeprefix("valid/") for tag in run.curves if tag.startswith("valid/")])
    figure = new_figure(9.6, 1.7 * -(-len(names) // 5))
    step, _ = run.best()
    for axes, name in zip(grid_of(figure, len(names), 5, sharex=True), names, strict=True):
        curve = run.curves[f"valid/{name}"]
        values = [shown(name, value) for value in curve.values]
        axes.plot(curve.steps, values, color=INK, marker="o", markersize=2)
        axes.axvline(step, color=COLOURS[1], linestyle="--", linewidth=0.9)
        axes.set_title(heading(name))
    return figure


def seeds_together(groups: dict[str, list[RunRecord]]) -> Figure:
    """Validation loss of every run, a panel per config, on one scale."""
    columns = min(3, len(groups))
    titles = [in_lines(name, _NAME) for name in groups]
    height = 2.5 + 0.15 * max(title.count("\n") for title in titles)
    figure = new_figure(3.6 * max(columns, 2), height * -(-len(groups) // columns))
    loss = next(iter(groups.values()))[0].loss_title
    panels = grid_of(figure, len(groups), columns, sharey=True)
    for axes, title, runs in zip(panels, titles, groups.values(), strict=True):
        for number, run in enumerate(runs):
            curve = run.curves["valid/loss"]
            axes.plot(
                curve.steps,
                curve.values,
                linestyle=DASHES[number % 4],
                linewidth=1.8,
                color=(INK, *COLOURS[1:])[number % 3],
                label=f"seed {run.seed}",
            )
        axes.set(title=title, xlabel="step")
        axes.legend(ncols=2)
    for axes in panels[::columns]:
        axes.set_ylabel(f"validation {loss}")
    return figure


def _width(curve: Curve) -> int:
    return max(1, len(curve.steps) // 25) | 1


def _headroom(axes: object, values: NDArray[np.float64]) -> None:
    """Let one outlier not flatten a panel: cut above ten spreads of the middle half."""
    known = values[np.isfinite(values)]
    if len(known) < 4:
        return
    low, middle, high = np.quantile(known, [0.05, 0.5, 0.95])
    top = middle + 10 * max(high - middle, 1e-12)
    if known.max() > top:
        axes.set_ylim(known.min() - 0.1 * (high - low), high + 2 * (high - low))  # type: ignore[attr-defined]
