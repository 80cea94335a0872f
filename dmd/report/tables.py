"""Tables of a report: each is written as CSV and LaTeX and shown on the page."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmd.metrics import METRICS, heading, headings_of, in_view, metric, show, shown, unit_note
from dmd.model.config import MODALITIES
from dmd.report.ensembles import ensemble_of
from dmd.report.groups import Group, Measured
from dmd.report.inference import SplitResult
from dmd.report.power import POWER
from dmd.report.published_results import ABLATION, UNIMODAL, PublishedResult
from dmd.report.simple_baselines import SimpleBaseline
from dmd.report.statistics import (
    PERMUTATIONS_PER_ROW,
    RESAMPLES,
    VISIBLE,
    Difference,
    Pair,
    compare,
    summarise,
)
from dmd.report.videos import videos_of

COMPUTED = "computed by this report"
"""What a table says of a row that no run stands behind."""
LEAST_P = 0.001
"""The least that is shown as a number."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Text cells under a header; the first column names the row."""

    name: str
    """File name without suffix."""
    title: str
    note: str = ""
    split: str = ""
    """What the metrics are of, where it is one split: part of the title, and the last column of the CSV file."""
    header: list[str]
    rows: list[list[str]]
    directions: Mapping[int, bool] = field(default_factory=dict)
    """Of the columns whose rows are compared with each other, by their best value: whether higher is better."""

    def words(self, column: int) -> bool:
        """Whether a column holds words rather than numbers."""
        cells = [row[column] for row in self.rows]
        return any(len(cell) > 3 and cell[0].isalpha() for cell in cells)

    def ranks(self, column: int) -> list[int]:
        """Of each row its place in a column of `directions`, from 1; rows that look alike share one, and 0 is that of
        rows without a number, and of all where no two numbers look different."""
        numbers = [_leading_number(row[column]) for row in self.rows]
        sign = -1 if self.directions[column] else 1
        order = sorted({sign * number for number in numbers if number is not None})
        if len(order) < 2:
            return [0] * len(numbers)
        return [0 if number is None else 1 + order.index(sign * number) for number in numbers]

    def csv(self) -> str:
        """The table as CSV."""
        text = io.StringIO()
        header, rows = self.header, self.rows
        if self.split:
            header, rows = [*header, "split"], [[*row, self.split] for row in rows]
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        return text.getvalue()


def _leading_number(cell: str) -> float | None:
    """The number that a cell begins with: of `0.638 ± 0.020` the mean."""
    try:
        return float(cell.partition(" ")[0])
    except ValueError:
        return None


def directions_of(metrics: Sequence[str], first: int) -> dict[int, bool]:
    """`Table.directions` of columns of metrics, which begin with column `first`."""
    return {first + number: metric(name).higher_is_better for number, name in enumerate(metrics)}


def deviation(name: str, values: Sequence[float]) -> str:
    """`mean ± std` of a metric, the mean alone for one value."""
    summary = summarise(values)
    mean = show(name, summary.mean)
    return mean if summary.count == 1 else f"{mean} ± {show(name, summary.std)}"


def spread(name: str, values: Sequence[float]) -> str:
    """`mean ± std [95 % interval of the mean]` of a metric, the mean alone for one value."""
    return " ".join(filter(None, (deviation(name, values), interval(name, values))))


def interval(name: str, values: Sequence[float]) -> str:
    """`[95 % interval of the mean]` of a metric, nothing for one value."""
    summary = summarise(values)
    if summary.count == 1:
        return ""
    low, high = summary.mean - summary.half_width, summary.mean + summary.half_width
    return f"[{show(name, low)}, {show(name, high)}]"


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What a summary shows of a config, an ensemble or a baseline."""

    name: str
    of: str
    values: dict[str, list[float]]
    """By metric, of each seed."""


def _rows_of(groups: Sequence[Group], baselines: Sequence[SimpleBaseline]) -> list[_Row]:
    """Every config, its ensemble if it has several seeds, and the baselines last."""
    rows = list[_Row]()
    for group in groups:
        names = group.metrics
        rows.append(
            _Row(name=group.name, of=f"single, {_seeds(group)}", values={name: group.values(name) for name in names})
        )
        if len(group.members) > 1:
            fused = group.ensemble.metrics["fused"]
            values = {name: [value] for name, value in fused.items()}
            rows.append(_Row(name=group.name, of=_ensemble(group), values=values))
    rows += [
        _Row(name=one.name, of=COMPUTED, values={name: [value] for name, value in one.metrics.items()})
        for one in baselines
    ]
    return rows


def _seeds(group: Group) -> str:
    count = len(group.members)
    return f"{count} seeds" if count > 1 else "1 seed"


def _ensemble(group: Group) -> str:
    return f"ensemble of {len(group.members)}"


def _about(baselines: Sequence[SimpleBaseline]) -> str:
    """What a note says of the baselines."""
    parts = [f"{one.name} by this report ({one.about})" for one in baselines]
    return f" Computed on the shards: {', '.join(parts)}." if parts else ""


def _seed_counts(groups: Sequence[Group]) -> str:
    """How many seeds configs have, in words."""
    counts = sorted({len(group.members) for group in groups})
    return "1 seed" if counts == [1] else f"{' to '.join(dict.fromkeys(map(str, (counts[0], counts[-1]))))} seeds"


def _are_comparable(groups: Sequence[Group]) -> bool:
    """Whether all results are answers to the same samples."""
    first, *others = [member.result for group in groups for member in group.members]
    return all(is_comparable(first, other) for other in others)


def _sample_counts(groups: Sequence[Group]) -> str:
    """How many samples configs are measured on, in words."""
    counts = [len(group.members[0].result.ids) for group in groups]
    if _are_comparable(groups):
        return f"{counts[0]} samples"
    each = ", ".join(f"{group.name} {count}" for group, count in zip(groups, counts, strict=True))
    return f"Samples: {each}; they are not the same, so no model is marked as the best"


def main_table(groups: list[Group], split: str, baselines: Sequence[SimpleBaseline] = ()) -> Table:
    """Models as rows, the metrics of papers as columns: mean ± deviation over seeds, and the ensemble."""
    names = in_view("paper", groups[0].metrics)
    return Table(
        name="main",
        title=f"Results on the {split} split",
        split=split,
        note=f"{_sample_counts(groups)}. {_seed_counts(groups)} per model: mean ± standard deviation over seeds "
        "(n - 1); of an ensemble the metric of the mean of its seeds' answers. Each run is evaluated with the "
        f"checkpoint of its best validation loss.{_about(baselines)} {unit_note(names)}",
        header=["model", "of", *map(heading, names)],
        rows=[[row.name, row.of, *(deviation(n, row.values[n]) for n in names)] for row in _rows_of(groups, baselines)],
        directions=directions_of(names, 2) if _are_comparable(groups) else {},
    )


def summary_table(groups: list[Group], split: str, baselines: Sequence[SimpleBaseline] = ()) -> Table:
    """Every metric of every config with its mean, deviation and interval over seeds, and of its ensemble."""
    rows = _rows_of(groups, baselines)
    return Table(
        name="summary",
        title=f"All metrics on the {split} split, fused prediction",
        split=split,
        note="Mean ± standard deviation over seeds (n - 1) and the 95 % interval of the mean (Student's t). Each run "
        f"is evaluated once on this split, with the checkpoint of its best validation loss.{_about(baselines)} "
        f"{unit_note(groups[0].metrics)}",
        header=["metric", "config", "of", "mean", "95 % interval"],
        rows=[
            [title, row.name, row.of, deviation(name, row.values[name]), interval(name, row.values[name])]
            for name, title in headings_of(groups[0].metrics).items()
            for row in rows
        ],
    )


def run_table(groups: list[Group], split: str) -> Table:
    """Every run by itself."""
    rows, titles = [], headings_of(groups[0].metrics)
    for group in groups:
        for member in group.members:
            step, loss = member.run.best()
            metrics = member.result.metrics["fused"]
            values = [show(m, metrics[m]) for m in titles]
            state = "finished" if member.run.finished else f"not finished, step {member.run.last_step}"
            rows.append([member.run.name, group.name, str(member.run.seed), state, str(step), f"{loss:.4f}", *values])
    loss_title = groups[0].members[0].run.loss_title
    return Table(
        name="runs",
        title=f"Each run on the {split} split",
        split=split,
        header=["run", "config", "seed", "training", "best step", f"best valid {loss_title}", *titles.values()],
        rows=rows,
        note=unit_note(groups[0].metrics),
    )


def heads_table(measured: Measured) -> Table:
    """All metrics of all heads of one run."""
    titles, split = headings_of(measured.result.metrics["fused"]), measured.result.split
    heads = measured.run.heads
    rows = [
        [heads[head].title, *(show(m, values[m]) for m in titles)] for head, values in measured.result.metrics.items()
    ]
    return Table(
        name="heads",
        title=f"All metrics of all heads on the {split} split",
        split=split,
        header=["head", *titles.values()],
        rows=rows,
        note=unit_note(titles),
        directions=directions_of(list(titles), 1),
    )


def is_comparable(one: SplitResult, other: SplitResult) -> bool:
    """Whether two results are answers to the same samples with the same labels."""
    return other.ids == one.ids and other.scoring == one.scoring and np.array_equal(other.labels, one.labels)


def comparison_table(groups: list[Group]) -> Table | None:
    """Every config against the first one on the same samples, as seeds and as ensembles; None for one config."""
    if len(groups) == 1:
        return None
    reference = groups[0]
    own = reference.members[0].result
    names = in_view("bootstrap", reference.metrics)
    compared = [group for group in groups[1:] if is_comparable(own, group.members[0].result)]
    others = [group.name for group in groups[1:] if group not in compared]
    pairs = pairs_of({group.name: [member.result for member in group.members] for group in (reference, *compared)})
    videos = videos_of(own.ids)
    differences = compare(pairs, own.labels, metrics=names, scoring=own.scoring, videos=videos) if pairs else []
    unfinite = [group.name for group in (reference, *compared) if not all(map(_is_finite, group.members))]
    lower = ", ".join(METRICS[name].title for name in names if not METRICS[name].higher_is_better)
    notes = [_unit_note(videos), COMPARISON_NOTE]
    if lower:
        notes.append(f"{lower}: lower is better.")
    if others:
        notes.append(f"Not compared, since their samples or labels are others: {', '.join(others)}.")
    if unfinite:
        notes.append(f"Without metrics, since not all their answers are finite: {', '.join(unfinite)}.")
    return Table(
        name="bootstrap",
        title=f"Paired comparison on the {own.split} split against: {reference.name}",
        split=own.split,
        note=" ".join(notes),
        header=list(COMPARISON_HEADER),
        rows=[difference_cells(found) for found in differences],
    )


COMPARISON_HEADER = (
    "config",
    "of",
    "metric",
    "difference",
    "95 % interval",
    "simultaneous",
    "p",
    "p, Holm",
    "at 5 %",
    f"seeds for {VISIBLE:g}",
    f"samples for {VISIBLE:g}",
)
COMPARISON_NOTE = (
    "Config minus reference, Acc and F1 in points of per cent. 95 % interval: expanded percentiles of "
    f"{RESAMPLES:,} paired bootstrap resamples, the same ones for all, and of seeds; of ensembles without seeds. "
    "Simultaneous: holds for all rows together (max-t over the same resamples); a config differs where it excludes "
    f"zero. p: paired permutation test, at least {RESAMPLES:,} permutations and {PERMUTATIONS_PER_ROW} a row, or all, "
    "of these trained models; none of Corr and F1 where the numbers of seeds differ; then Holm's correction over all "
    "rows. The last columns: how many seeds of each config on these samples, or how many samples with these seeds, "
    f"would show a difference of {VISIBLE:g} (a point of Acc and F1; of errors on another scale than [-3, 3] as large "
    f"a part of it) with a probability of {100 * POWER:.0f} %; ∞: no number would; –: not known, of one seed or where "
    "nothing varied. One seed per config says nothing of the spread between seeds, and fewer than five say it is "
    "smaller than it is."
)


def _unit_note(videos: Sequence[str]) -> str:
    """What a comparison draws and swaps."""
    if not videos:
        return (
            "Samples are drawn and swapped one by one, as independent: their ids name no videos. If some are of one "
            "video, intervals and p are too small."
        )
    return (
        f"Whole videos are drawn and swapped, {len(set(videos))} with {len(videos)} samples, since samples of one "
        "video are alike."
    )


def pairs_of(configs: Mapping[str, Sequence[SplitResult]]) -> list[Pair]:
    """Every config against the first one: its seeds, and where both have several their ensembles.

    Args:
        configs: by name, the results of each one's seeds on the same samples.
    """
    seeds = {name: np.stack([_answers(result) for result in results]) for name, results in configs.items()}
    ensembles = {name: _answers(ensemble_of(results))[None] for name, results in configs.items() if len(results) > 1}
    first, *others = configs
    pairs = list[Pair]()
    for name in others:
        pairs.append(Pair(name=name, first=seeds[first], second=seeds[name]))
        if first in ensembles and name in ensembles:
            pairs.append(
                Pair(
                    name=name,
                    first=ensembles[first],
                    second=ensembles[name],
                    members=(len(configs[first]), len(configs[name])),
                )
            )
    return pairs


def _is_finite(measured: Measured) -> bool:
    """Whether a run has answers to all samples."""
    return bool(np.isfinite(measured.result.predictions["fused"]).all())


def _answers(result: SplitResult) -> NDArray[Any]:
    """Answers [N, ...]; NaN of samples for which the fused head says nothing finite, which is a class number too."""
    fused = result.predictions["fused"]
    finite = np.isfinite(fused.reshape(len(fused), -1)).all(1)
    if finite.all():
        return result.answers
    answers = result.answers.astype(np.float64)
    answers[~finite] = math.nan
    return answers


def difference_cells(found: Difference) -> list[str]:
    """The cells of a difference under `COMPARISON_HEADER`."""
    numbers = (found.mean, found.low, found.high, found.low_of_all, found.high_of_all)
    mean, low, high, low_of_all, high_of_all = (_signed(shown(found.metric, value)) for value in numbers)
    alone = "differs alone" if found.low > 0 or found.high < 0 else "no difference shown"
    counts = dict.fromkeys(map(str, found.members or found.seeds))
    return [
        found.name,
        f"ensembles of {' and '.join(counts)}" if found.members else f"single, {' and '.join(counts)} seeds",
        heading(found.metric),
        mean,
        f"[{low}, {high}]",
        f"[{low_of_all}, {high_of_all}]",
        _probability(found.p),
        _probability(found.p_of_all),
        "differs" if found.is_shown else alone,
        _count(found.seeds_needed),
        _count(found.samples_needed),
    ]


def _signed(value: float) -> str:
    return "–" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}"


def _probability(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"<{LEAST_P:.3f}" if value < LEAST_P else f"{value:.3f}"


def _count(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.0f}"


def ablation_flags(group: Group) -> tuple[bool, bool, bool, bool]:
    """(FD, HomoGD, CA, HeteroGD) of a config, as the columns of the paper's Table 3."""
    model, objective = group.config["model"], group.config["objective"]
    return (
        bool(model["decoupling"]),
        bool(objective["homo_distillation"]),
        bool(model["crossmodal"]),
        bool(objective["hetero_distillation"]),
    )


def ablation_table(groups: list[Group], data: str | None) -> Table | None:
    """Our configs of DMD in the form of the paper's Table 3, above the figures that it prints of a data set; None where
    it has none of it, and where no config is of DMD.

    Args:
        data: a key of `ABLATION`'s figures; None: another data set, or another split than that of the paper.
    """

    def marks(flags: Sequence[bool]) -> list[str]:
        return ["✓" if flag else "✗" for flag in flags]

    own = _of_dmd(groups)
    if data is None or not own:
        return None
    rows = [
        [
            "here",
            group.name,
            group.members[0].result.split,
            *marks(ablation_flags(group)),
            spread("acc7", group.values("acc7")),
            spread("f1_non0", group.values("f1_non0")),
        ]
        for group in own
    ]
    for flags, figures in ABLATION:
        acc7, f1 = figures[data]
        rows.append(["paper", f"{data}, unaligned", "test", *marks(flags), f"{acc7}", f"{f1}"])
    return Table(
        name="ablation",
        title="Ablation, in the form of the paper's Table 3",
        note="FD feature decoupling, CA crossmodal attention; in per cent, F1 in the non-zero protocol.",
        header=["source", "config", "split", "FD", "HomoGD", "CA", "HeteroGD", heading("acc7"), heading("f1_non0")],
        rows=rows,
    )


def _of_dmd(groups: list[Group]) -> list[Group]:
    """The configs of the model that the paper's tables are about."""
    return [group for group in groups if group.members[0].run.model == "dmd"]


def unimodal_table(groups: list[Group], data: str | None) -> Table | None:
    """DMD's heads of the single modalities in the form of the paper's Table 4, above the figures that it prints of a
    data set, if any; None where no config is of DMD.

    Args:
        data: see `ablation_table`.
    """
    rows = []
    for group in _of_dmd(groups):
        for space in ("homo", "hetero"):
            heads = [f"{m}_{space}" for m in MODALITIES]
            pairs = [
                (float(np.mean(group.values("acc2_non0", h))), float(np.mean(group.values("f1_non0", h))))
                for h in heads
            ]
            percent = [(shown("acc2_non0", a), shown("f1_non0", f)) for a, f in pairs]
            rows.append(["here", f"{group.name}: {space}", group.members[0].result.split, *_with_spread(percent)])
    if not rows:
        return None
    for name, values in UNIMODAL.get(data or "", {}).items():
        rows.append(["paper", f"{data}, {name}", "test", *_with_spread([values[m] for m in MODALITIES])])
    return Table(
        name="unimodal",
        title="Single modalities, in the form of the paper's Table 4",
        note="Acc2 / F1 in the non-zero protocol, per cent; deviation over the three modalities, n - 1 in its "
        "denominator.",
        header=["source", "heads", "split", *(f"{m} %" for m in MODALITIES), "mean %", "deviation %"],
        rows=rows,
    )


def _with_spread(pairs: list[tuple[float, float]]) -> list[str]:
    array = np.array(pairs)
    cells = [*pairs, tuple(array.mean(0)), tuple(array.std(0, ddof=1))]
    return [f"{acc2:.1f} / {f1:.1f}" for acc2, f1 in cells]


def published_table(groups: list[Group], split: str, results: Sequence[PublishedResult]) -> Table | None:
    """Ours beside published figures of the same data set and split, each with its setting; None without any."""
    if not results:
        return None
    names = in_view("paper", groups[0].metrics)
    rows = []
    for group in groups:
        info = group.members[0].run.info
        text = group.config["text"]["encoder"] if not info["dims"]["text"] else f"{info['dims']['text']}-d features"
        setting = f"{'/'.join(str(n) for n in info['lengths'].values())} steps, text: {text}"
        rows += [
            [f"here: {row.name}", f"{setting}, {row.of}", "this report", *(deviation(n, row.values[n]) for n in names)]
            for row in _rows_of([group], [])
        ]
    for result in results:
        cells = [show(name, result.metrics.get(name, math.nan)) for name in names]
        rows.append([result.method, result.setting, result.source, *cells])
    return Table(
        name="published",
        title=f"Beside the published figures of {results[0].data} on the {split} split",
        split=split,
        note="Comparable only with the same features; how many seeds a figure is the mean of, its source says. The "
        f"paper prints no deviations. {unit_note(names)}",
        header=["method", "setting", "source", *map(heading, names)],
        rows=rows,
    )
