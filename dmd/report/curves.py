"""Figures of trainings: configs by epoch, as mean and band over their seeds; of one run every loss term and metric."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from numpy.typing import NDArray

from dmd.metrics import heading, in_view, known_metrics, shown
from dmd.report.groups import Group
from dmd.report.runs import Curve, RunRecord
from dmd.report.style import COLOURS, DASHES, INK, SOFT, grid_of, in_lines, new_figure

_NAME = 42
"""Characters of a line of a config's name above a panel."""
PANELS_ACROSS = 3
_RATES = {"train/learning_rate": "learning rate", "train/learning_rate_text": "learning rate of the text encoder"}


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


def curves_by_config(groups: Sequence[Group]) -> Figure:
    """Validation loss, headline metrics and learning rate by epoch: the mean over seeds of each config, with a band.

    Args:
        groups: at most as many as `groups.shown_together` gives.
    """
    loss = groups[0].members[0].run.loss_title
    names = [name for name in in_view("headline", groups[0].metrics) if _by_epoch(groups[0], f"valid/{name}")]
    names = [name for name in names if heading(name) != loss]
    panels: list[tuple[str, str, str]] = [("valid/loss", f"validation {loss}", "")]
    panels += [(f"valid/{name}", heading(name), name) for name in names]
    panels += [(tag, title, "") for tag, title in _RATES.items() if any(_by_epoch(group, tag) for group in groups)]
    columns = min(3, len(panels))
    figure = new_figure(9.6, 2.3 * -(-len(panels) // columns) + 0.3 * len(groups))
    for axes, (tag, title, metric) in zip(grid_of(figure, len(panels), columns), panels, strict=True):
        for number, group in enumerate(groups):
            seeds = _by_epoch(group, tag)
            if metric:
                seeds = [replace(c, values=np.array([shown(metric, value) for value in c.values])) for c in seeds]
            draw_band(axes, seeds, name=group.name, number=number)
        axes.set(title=title, xlabel="epoch")
        if tag in _RATES:
            axes.set_ylim(bottom=0)
    _legend_below(figure, columns=1)
    return figure


def train_beside_validation(groups: Sequence[Group]) -> Figure:
    """Validation's loss of the fused prediction on the train split, with dropout, and on the valid split, by epoch: a
    panel per config."""
    columns = min(PANELS_ACROSS, max(len(groups), 2))
    titles = [in_lines(group.name, _NAME * 3 // (columns + 1)) for group in groups]
    height = 2.2 + 0.15 * max(title.count("\n") for title in titles)
    figure = new_figure(9.6, height * -(-len(groups) // columns) + 0.3)
    panels = grid_of(figure, len(groups), columns, sharey=True)
    loss = groups[0].members[0].run.loss_title
    for axes, title, group in zip(panels, titles, groups, strict=True):
        training = _by_epoch(group, "train/fused_error") or _by_epoch(group, "train/task_fused")
        draw_band(axes, training, name=f"training {loss}", number=0)
        draw_band(axes, _by_epoch(group, "valid/loss"), name="validation", number=1)
        axes.set(title=title, xlabel="epoch")
    for axes in panels[::columns]:
        axes.set_ylabel(loss)
    _legend_below(figure, columns=2)
    return figure


def _legend_below(figure: Figure, *, columns: int) -> None:
    """One legend for all panels, of whatever any of them shows."""
    found: dict[str, Any] = {}
    for axes in figure.get_axes():
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside lower left", ncols=columns)


def draw_band(axes: Axes, seeds: Sequence[Curve], *, name: str, number: int) -> None:
    """The mean of some curves and, where there are several, their standard deviation (n - 1) around it."""
    if not seeds:
        return
    steps, mean, deviation = over_seeds(seeds)
    colour = (INK, *COLOURS[1:])[number % 3]
    line = DASHES[number // 3 % len(DASHES)]
    axes.plot(steps, mean, color=colour, linestyle=line, linewidth=1.8, label=name, marker="o", markersize=2)
    axes.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)


def over_seeds(
    seeds: Sequence[Curve],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (n - 1) of some curves at every step that one of them has [T]; each step counts the
    curves that have a finite number there, and the deviation of one is NaN."""
    values: dict[int, list[float]] = {}
    for seed in seeds:
        for step, value in zip(seed.steps.tolist(), seed.values.tolist(), strict=True):
            if np.isfinite(value):
                values.setdefault(step, []).append(value)
    steps = sorted(values)
    mean = [float(np.mean(values[step])) for step in steps]
    deviation = [float(np.std(values[step], ddof=1)) if len(values[step]) > 1 else np.nan for step in steps]
    return np.array(steps, dtype=np.int64), np.array(mean), np.array(deviation)


def by_epoch(run: RunRecord, tag: str) -> Curve | None:
    """A tag over the epochs 1, 2, ... of a run: the mean of what its steps logged in each; None where it has none."""
    curve, steps = run.curves.get(tag), int(run.info.get("steps_per_epoch") or 0)
    if curve is None or not steps:
        return None
    epochs = (curve.steps - 1) // steps + 1
    known = np.isfinite(curve.values)
    count = np.bincount(epochs[known])
    total = np.bincount(epochs[known], weights=curve.values[known])
    there = np.flatnonzero(count)
    return Curve(steps=there, values=total[there] / count[there])


def _by_epoch(group: Group, tag: str) -> list[Curve]:
    found = (by_epoch(member.run, tag) for member in group.members)
    return [curve for curve in found if curve is not None]


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
