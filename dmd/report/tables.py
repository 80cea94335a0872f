"""Tables of a report: each is written as CSV and shown on the page."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dmd.metrics import METRICS, heading, headings_of, in_view, show, shown, unit_note
from dmd.model.config import MODALITIES
from dmd.report.groups import Group, Measured
from dmd.report.published_results import ABLATION, RESULTS, UNIMODAL
from dmd.report.statistics import paired_bootstrap, summarise


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

    def words(self, column: int) -> bool:
        """Whether a column holds words rather than numbers."""
        cells = [row[column] for row in self.rows]
        return any(len(cell) > 3 and cell[0].isalpha() for cell in cells)

    def csv(self) -> str:
        """The table as CSV."""
        text = io.StringIO()
        header, rows = self.header, self.rows
        if self.split:
            header, rows = [*header, "split"], [[*row, self.split] for row in rows]
        csv.writer(text, lineterminator="\n").writerows([header, *rows])
        return text.getvalue()


def spread(metric: str, values: Sequence[float]) -> str:
    """`mean ± std [95 % interval of the mean]`, the mean alone for one value."""
    summary = summarise(values)
    if summary.count == 1:
        return show(metric, summary.mean)
    low, high = summary.mean - summary.half_width, summary.mean + summary.half_width
    deviation = show(metric, summary.std)
    return f"{show(metric, summary.mean)} ± {deviation} [{show(metric, low)}, {show(metric, high)}]"


def summary_table(groups: list[Group], split: str) -> Table:
    """Every config with its mean, deviation and interval over seeds."""
    return Table(
        name="summary",
        title=f"Results on the {split} split, fused prediction",
        split=split,
        note="Mean ± standard deviation over seeds (n - 1) [95 % interval of the mean, Student's t]. Each run is "
        f"evaluated once, with the checkpoint of its best validation loss. {unit_note(groups[0].metrics)}",
        header=["metric", *(f"{group.name}, {_seeds(group)}" for group in groups)],
        rows=[
            [title, *(spread(m, group.values(m)) for group in groups)]
            for m, title in headings_of(groups[0].metrics).items()
        ],
    )


def _seeds(group: Group) -> str:
    count = len(group.members)
    return f"{count} seeds" if count > 1 else "1 seed"


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
    )


def comparison_table(groups: list[Group]) -> Table | None:
    """Paired bootstrap of every config against the first one on the same samples; None for one config."""
    reference, rows, others = groups[0], list[list[str]](), list[str]()
    own = reference.members[0].result
    compared = in_view("bootstrap", reference.metrics)
    for group in groups[1:]:
        there = group.members[0].result
        if there.ids != own.ids or there.scoring != own.scoring or not np.array_equal(there.labels, own.labels):
            others.append(group.name)
            continue
        first, second = (np.stack([m.result.answers for m in g.members]) for g in (reference, group))
        for found in paired_bootstrap(first, second, own.labels, metrics=compared, scoring=own.scoring):
            mean, low, high = (shown(found.metric, value) for value in (found.mean, found.low, found.high))
            verdict = "differs" if low > 0 or high < 0 else "no difference shown"
            rows.append(
                [
                    group.name,
                    heading(found.metric),
                    f"{mean:+.3f}",
                    f"[{low:+.3f}, {high:+.3f}]",
                    f"{found.p:.3f}",
                    verdict,
                ]
            )
    if len(groups) == 1:
        return None
    lower = ", ".join(METRICS[name].title for name in compared if not METRICS[name].higher_is_better)
    left_out = f" Not compared, since their samples or labels are others: {', '.join(others)}." if others else ""
    return Table(
        name="bootstrap",
        title=f"Paired bootstrap on the {own.split} split against: {reference.name}",
        split=own.split,
        note="Config minus reference, Acc in points of per cent. Samples and seeds are drawn with replacement, the "
        "same samples for both; percentile interval of 10,000 resamples. One seed per config says nothing of "
        f"the spread between seeds.{f' {lower}: lower is better.' if lower else ''}{left_out}",
        header=["config", "metric", "difference", "95 % interval", "p", "at 5 %"],
        rows=rows,
    )


def ablation_flags(group: Group) -> tuple[bool, bool, bool, bool]:
    """(FD, HomoGD, CA, HeteroGD) of a config, as the columns of the paper's Table 3."""
    model, objective = group.config["model"], group.config["objective"]
    return (
        bool(model["decoupling"]),
        bool(objective["homo_distillation"]),
        bool(model["crossmodal"]),
        bool(objective["hetero_distillation"]),
    )


def ablation_table(groups: list[Group]) -> Table:
    """Our configs of DMD in the form of the paper's Table 3, above the figures that it prints."""

    def marks(flags: Sequence[bool]) -> list[str]:
        return ["✓" if flag else "✗" for flag in flags]

    rows = [
        [
            "here",
            group.name,
            group.members[0].result.split,
            *marks(ablation_flags(group)),
            spread("acc7", group.values("acc7")),
            spread("f1_non0", group.values("f1_non0")),
        ]
        for group in _of_dmd(groups)
    ]
    for flags, mosi, mosei in ABLATION:
        for data, (acc7, f1) in (("MOSI", mosi), ("MOSEI", mosei)):
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


def unimodal_table(groups: list[Group]) -> Table:
    """DMD's heads of the single modalities in the form of the paper's Table 4, above the figures that it prints."""
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
    for name, values in UNIMODAL.items():
        rows.append(["paper", f"MOSEI, {name}", "test", *_with_spread([values[m] for m in MODALITIES])])
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


def published_table(groups: list[Group], split: str) -> Table:
    """Ours beside what the paper prints, each with its setting."""
    rows = []
    for group in groups:
        info = group.members[0].run.info
        text = group.config["text"]["encoder"] if not info["dims"]["text"] else f"{info['dims']['text']}-d features"
        setting = f"{'/'.join(str(n) for n in info['lengths'].values())} steps, text: {text}"
        rows.append(
            [
                f"here: {group.name}",
                str(info["data_name"]),
                f"{setting}, {_seeds(group)}",
                split,
                *(spread(m, group.values(m)) for m in ("acc7", "acc2_non0", "f1_non0")),
            ]
        )
    rows += [[r.method, r.data, f"{r.setting}, paper", "test", f"{r.acc7}", f"{r.acc2}", f"{r.f1}"] for r in RESULTS]
    return Table(
        name="published",
        title="Beside the published figures",
        note="Comparable only on the same data, features and split: the paper's figures are of the test split. In per "
        "cent, Acc2 and F1 in the non-zero protocol.",
        header=["method", "data", "setting", "split", *map(heading, ("acc7", "acc2_non0", "f1_non0"))],
        rows=rows,
    )
