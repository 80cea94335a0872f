"""The figure over runs: every seed, and the mean with its interval per config."""

import numpy as np
from matplotlib.figure import Figure

from dmd.metrics import heading, in_view, shown
from dmd.report.groups import Group
from dmd.report.statistics import summarise
from dmd.report.style import COLOURS, INK, grid_of, in_lines, new_figure

_NAME = 34
"""Characters of a line of a config's name beside its values."""


def comparison_figure(groups: list[Group]) -> Figure:
    """A panel per metric, configs down."""
    titles = [in_lines(group.name, _NAME) for group in groups]
    lines = 1 + max(title.count("\n") for title in titles)
    figure = new_figure(9.8, 1.1 + (0.3 + 0.15 * lines) * len(groups))
    places = np.arange(len(groups))
    names = in_view("configs", groups[0].metrics)
    for axes, metric in zip(grid_of(figure, len(names), len(names), sharey=True), names, strict=True):
        for place, group in zip(places, groups, strict=True):
            values = [shown(metric, value) for value in group.values(metric)]
            summary = summarise(values)
            width = 0.0 if np.isnan(summary.half_width) else summary.half_width
            axes.errorbar(summary.mean, place, xerr=width, fmt="D", color=COLOURS[1], markersize=5, capsize=3)
            axes.scatter(values, np.full(len(values), place - 0.22), s=14, color=INK, alpha=0.6, linewidths=0)
        axes.set_title(heading(metric))
        axes.set_yticks(places, titles)
        axes.set_ylim(len(groups) - 0.4, -0.6)
        axes.locator_params(axis="x", nbins=4)
    return figure
