"""How far off each sample is, and which samples are: by length, by speaker, by label.

Each row is a set of samples with the mean of their errors and its 95 % interval over them: Student's t of sentiments
and emotions, Wilson's of classes, which are right or wrong. Samples of one video are alike, so intervals of sets that
hold few videos are too narrow.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

from dmd.model.config import MODALITIES
from dmd.report.groups import Group
from dmd.report.inference import SplitResult
from dmd.report.predictions import fine_classes
from dmd.report.statistics import LEVEL, summarise
from dmd.report.style import COLOURS, INK, SOFT, grid_of, new_figure
from dmd.report.tables import Table
from dmd.report.videos import video_of as video_of
from dmd.report.videos import videos_of as videos_of

QUANTILES = 4
"""Sets into which samples are divided by their length."""
SPEAKERS_DRAWN = 40
"""Of the figure; its table has all."""
LETTERS_ACROSS = 150
"""Below an axis as wide as the page, from which names are turned."""
_ALL = "all"


@dataclass(frozen=True, kw_only=True)
class ErrorRow:
    """A set of samples."""

    name: str
    count: int
    mean: float
    low: float
    """Of the 95 % interval, at least 0; NaN of one sample."""
    high: float


@dataclass(frozen=True, kw_only=True)
class Division:
    """A way to divide the N samples of a split into sets."""

    name: str
    title: str
    sets: dict[str, NDArray[np.bool_]]
    """{name: [N]}"""


def error_title(result: SplitResult) -> str:
    """What `errors_of` is the mean of."""
    titles = {"regression": "MAE", "classes": "wrong class, share", "multilabel": "wrong emotions, share"}
    return titles[result.scoring.kind]


def errors_of(result: SplitResult) -> NDArray[np.float64]:
    """The error of each sample [N]: distance of the sentiment, 1 for a wrong class, share of the emotions that are
    wrong."""
    if result.scoring.kind == "regression":
        return np.abs(result.answers - result.labels).astype(np.float64)
    wrong = (result.answers != result.labels).astype(np.float64)
    return wrong.mean(1) if result.scoring.kind == "multilabel" else wrong


def error_row(name: str, errors: NDArray[np.float64], *, by_count: bool) -> ErrorRow:
    """The mean of some errors; `by_count`: each is 0 or 1."""
    count = len(errors)
    if by_count:
        found = binomtest(int(errors.sum()), count).proportion_ci(LEVEL, method="wilson")
        return ErrorRow(name=name, count=count, mean=float(errors.mean()), low=found.low, high=found.high)
    summary = summarise(errors.tolist())
    low, high = max(summary.mean - summary.half_width, 0.0), summary.mean + summary.half_width
    return ErrorRow(name=name, count=count, mean=summary.mean, low=low, high=high)


def divisions(result: SplitResult) -> list[Division]:
    """By length, by label and, where ids name one, by video."""
    found = [*_by_lengths(result), _by_label(result)]
    videos = np.array(videos_of(result.ids))
    if len(videos):
        sets = {str(video): videos == video for video in np.unique(videos)}
        found.append(Division(name="video", title="by video or speaker, as ids begin", sets=sets))
    return found


def _by_lengths(result: SplitResult) -> Iterable[Division]:
    lengths = {m: ("steps", f"unpadded steps of {m}", result.steps[m]) for m in MODALITIES if m in result.steps}
    if any(result.texts):
        words = np.array([len(text.split()) for text in result.texts], dtype=np.int64)
        lengths = {"words": ("words", "words of the transcript", words), **lengths}
    seen: dict[bytes, str] = {}
    for name, (unit, title, values) in lengths.items():
        same = seen.setdefault(values.tobytes(), name)
        sets = quantile_sets(values, unit)
        if same == name and len(sets) > 1:
            also = [m for m, (_, _, other) in lengths.items() if m != name and np.array_equal(other, values)]
            if also:
                title += f", of which there are as many as unpadded steps of {' and '.join(also)}"
            yield Division(name=name if name == "words" else f"steps_{name}", title=f"by {title}", sets=sets)


def quantile_sets(values: NDArray[np.int64], unit: str) -> dict[str, NDArray[np.bool_]]:
    """Samples [N] by the quantiles of a number; quantiles that are equal make one set."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, QUANTILES + 1)[1:], method="lower"))
    sets, low = {}, int(values.min())
    for edge in edges.tolist():
        chosen = (values >= low) & (values <= edge)
        sets[f"{low}–{edge} {unit}" if low < edge else f"{edge} {unit}"] = chosen
        low = int(edge) + 1
    return sets


def _by_label(result: SplitResult) -> Division:
    scoring = result.scoring
    if scoring.kind == "multilabel":
        has = result.labels > 0
        sets = {name: has[:, number] for number, name in enumerate(scoring.titles)} | {"none": ~has.any(1)}
        return Division(name="label", title="by emotion that is there", sets=_filled(sets))
    classes = result.labels.astype(np.int64) if scoring.kind == "classes" else fine_classes(result.labels, scoring)
    names = scoring.titles if scoring.kind == "classes" else scoring.fine_classes
    sets = {name: classes == number for number, name in enumerate(names)}
    return Division(name="label", title="by true class", sets=_filled(sets))


def _filled(sets: Mapping[str, Any]) -> dict[str, NDArray[np.bool_]]:
    return {name: chosen for name, chosen in sets.items() if chosen.any()}


def error_tables_and_figures(groups: Sequence[Group]) -> tuple[list[Table], dict[str, tuple[Figure, str]]]:
    """Tables, and {name: (figure, caption)}, of each division of the samples of some configs, which have the same ones:
    of each config the ensemble of its seeds."""
    results = {group.name: group.ensemble for group in groups}
    first = next(iter(results.values()))
    by_count, title = first.scoring.kind == "classes", error_title(first)
    errors = {name: errors_of(result) for name, result in results.items()}
    tables, figures = [], {}
    for division in divisions(first):
        rows = {
            config: [error_row(name, of[chosen], by_count=by_count) for name, chosen in division.sets.items()]
            for config, of in errors.items()
        }
        whole = {config: error_row(_ALL, of, by_count=by_count) for config, of in errors.items()}
        name = f"errors_by_{division.name}"
        tables.append(_table(name, f"{title} {division.title}", rows, whole, first.split))
        caption = f"{title} {division.title} on the {first.split} split, with 95 % intervals; dashed: all samples."
        if division.name == "video":
            count, drawn = len(division.sets), min(SPEAKERS_DRAWN, len(division.sets))
            which = f"The {drawn} of {count} videos" if drawn < count else "Videos"
            caption += f" {which} with the largest mean error of the first config, the largest first."
        figures[name] = _figure(rows, whole, title, worst_first=division.name == "video"), caption
    return tables, figures


def _table(name: str, title: str, rows: dict[str, list[ErrorRow]], whole: dict[str, ErrorRow], split: str) -> Table:
    first = next(iter(rows.values()))
    numbers = range(len(first))
    body = [
        [first[number].name, str(first[number].count), *(_cell(of[number]) for of in rows.values())]
        for number in numbers
    ]
    overall = next(iter(whole.values()))
    body.append([_ALL, str(overall.count), *(_cell(row) for row in whole.values())])
    return Table(name=name, title=title, split=split, header=["samples", "count", *rows], rows=body)


def _cell(row: ErrorRow) -> str:
    if math.isnan(row.low):
        return f"{row.mean:.3f}"
    return f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"


def _figure(rows: dict[str, list[ErrorRow]], whole: dict[str, ErrorRow], title: str, *, worst_first: bool) -> Figure:
    """A panel per config; sets across."""
    first = next(iter(rows.values()))
    order = list(range(len(first)))
    if worst_first:
        order = sorted(order, key=lambda number: -first[number].mean)[:SPEAKERS_DRAWN]
    columns = 1 if len(order) > 12 else min(3, len(rows))
    figure = new_figure(9.6, 2.4 * -(-len(rows) // columns))
    for axes, (config, of) in zip(grid_of(figure, len(rows), columns, sharey=True), rows.items(), strict=True):
        chosen = [of[number] for number in order]
        means = np.array([row.mean for row in chosen])
        around = np.nan_to_num(np.array([[row.mean - row.low, row.high - row.mean] for row in chosen]).T)
        axes.axhline(whole[config].mean, color=SOFT, linestyle="--", linewidth=1)
        axes.errorbar(
            range(len(chosen)), means, yerr=np.maximum(around, 0), fmt="o", color=INK, ecolor=COLOURS[1], capsize=2
        )
        names = [row.name if worst_first else f"{row.name}\n{row.count}" for row in chosen]
        longest = max(len(row.name) for row in chosen)
        turned = longest * len(chosen) * columns > LETTERS_ACROSS
        axes.set_xticks(range(len(chosen)), names, rotation=90 if turned else 0, fontsize=7)
        axes.set(title=config, ylabel=title)
    return figure
