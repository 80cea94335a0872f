"""The metrics, one row each, and how they are shown. Whatever lists metrics reads this table."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from torch import Tensor

from dmd.metrics.classes import accuracy, cross_entropy, f1_macro, f1_weighted, right_answer
from dmd.metrics.sentiment import (
    absolute_error,
    correlation,
    f1_has0,
    f1_non0,
    mean_of,
    right_class,
    right_sign_has0,
    right_sign_non0,
)

Kind = Literal["regression", "classes"]
"""Which models have a metric: those that predict sentiments, or those that predict one of several classes."""
View = Literal["headline", "hparams", "configs", "missing", "bootstrap"]
"""Where some of the metrics are shown, beside the tables, which show all:
headline: the epoch line of a training and the report's figure of the heads;
hparams: TensorBoard's hyperparameter page, beside the validation loss;
configs: the report's figure over configs and seeds;
missing: the figure of `dmd missing`;
bootstrap: the report's paired comparison of configs; needs `of_samples`."""
PROTOCOLS = {"Has0": "all samples, >= 0 against < 0", "Non0": "without the labels that are 0, > 0 against < 0"}
"""What the last word of a title means."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric."""

    name: str
    """What programs read: Python, JSON, JSON lines, TensorBoard's tags."""
    title: str
    """What people read: tables, CSV files beside them, figures, the terminal."""
    about: str
    """What it is, for the documentation."""
    kind: Kind
    unit: Literal["%", "nats", ""]
    """Of what people read. A metric in per cent is a share in [0, 1] for programs."""
    function: Callable[[Tensor, Tensor], float]
    """Its value of all samples, in float64: from sentiments [N], or logits [N, classes], and labels [N]."""
    of_samples: Callable[[Tensor, Tensor], Tensor] | None = None
    """Of a mean over samples: what each adds, NaN where it is left out; from sentiments or class numbers [..., N] and
    labels [N]."""
    higher_is_better: bool = True
    is_loss: bool = False
    """Whether it is the validation loss of its kind, by which checkpoints and trials are selected."""
    family: str = ""
    """What a note calls it together with others of its unit; empty: its title."""
    views: Mapping[View, int] = field(default_factory=dict)
    """Which views show it, and its place there; those of equal place follow the order of this table."""


def _accuracy_in_classes(classes: int, views: Mapping[View, int]) -> Metric:
    of_samples = partial(right_class, bound=classes // 2)
    return Metric(
        name=f"acc{classes}",
        title=f"Acc{classes}",
        about=f"accuracy in the {classes} classes of the sentiment clipped and rounded half to even",
        kind="regression",
        unit="%",
        function=mean_of(of_samples),
        of_samples=of_samples,
        family="Acc",
        views=views,
    )


_ROWS = (
    Metric(
        name="mae",
        title="MAE",
        about="mean absolute error",
        kind="regression",
        unit="",
        function=mean_of(absolute_error),
        of_samples=absolute_error,
        higher_is_better=False,
        is_loss=True,
        views={"headline": 1, "configs": 1, "missing": 1, "bootstrap": 1},
    ),
    Metric(
        name="corr",
        title="Corr",
        about="Pearson's correlation",
        kind="regression",
        unit="",
        function=correlation,
        views={"headline": 2, "hparams": 4, "configs": 1},
    ),
    _accuracy_in_classes(7, views={"headline": 4, "hparams": 3, "configs": 1, "bootstrap": 1}),
    _accuracy_in_classes(5, views={}),
    _accuracy_in_classes(3, views={}),
    Metric(
        name="acc2_has0",
        title="Acc2 Has0",
        about="accuracy of the sign over all samples",
        kind="regression",
        unit="%",
        function=mean_of(right_sign_has0),
        of_samples=right_sign_has0,
        family="Acc",
        views={"bootstrap": 1},
    ),
    Metric(
        name="f1_has0",
        title="F1 Has0",
        about="weighted F1 of the sign over all samples",
        kind="regression",
        unit="%",
        function=f1_has0,
        family="F1",
    ),
    Metric(
        name="acc2_non0",
        title="Acc2 Non0",
        about="accuracy of the sign without the samples whose label is 0",
        kind="regression",
        unit="%",
        function=mean_of(right_sign_non0),
        of_samples=right_sign_non0,
        family="Acc",
        views={"headline": 3, "hparams": 1, "configs": 1, "missing": 1, "bootstrap": 1},
    ),
    Metric(
        name="f1_non0",
        title="F1 Non0",
        about="weighted F1 of the sign without the samples whose label is 0",
        kind="regression",
        unit="%",
        function=f1_non0,
        family="F1",
        views={"hparams": 2, "configs": 1},
    ),
    Metric(
        name="acc",
        title="Acc",
        about="accuracy",
        kind="classes",
        unit="%",
        function=accuracy,
        of_samples=right_answer,
        family="Acc",
        views={"headline": 1, "hparams": 1, "configs": 1, "missing": 1, "bootstrap": 1},
    ),
    Metric(
        name="f1_weighted",
        title="F1 weighted",
        about="F1, mean over the classes weighted by their share of the labels",
        kind="classes",
        unit="%",
        function=f1_weighted,
        family="F1",
        views={"headline": 1, "hparams": 1, "configs": 1, "missing": 1},
    ),
    Metric(
        name="f1_macro",
        title="F1 macro",
        about="F1, mean over the classes that occur",
        kind="classes",
        unit="%",
        function=f1_macro,
        family="F1",
        views={"headline": 1, "hparams": 1, "configs": 1},
    ),
    Metric(
        name="cross_entropy",
        title="CE",
        about="cross entropy",
        kind="classes",
        unit="nats",
        function=cross_entropy,
        higher_is_better=False,
        is_loss=True,
        views={"headline": 1, "hparams": 1, "configs": 1},
    ),
)
METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
"""All metrics by name, in the order of tables."""


def metrics_of(kind: Kind) -> list[Metric]:
    """The metrics of a kind of models."""
    return [row for row in METRICS.values() if row.kind == kind]


def kind_of(task: str | int) -> Kind:
    """The kind of the models of a task (`model.task`)."""
    return "regression" if task == "regression" else "classes"


def in_view(view: View, names: Collection[str]) -> list[str]:
    """Those of the metrics `names` that a view shows, in its order."""
    rows = [row for row in METRICS.values() if row.name in names and view in row.views]
    return [row.name for row in sorted(rows, key=lambda row: row.views[view])]


def loss_title(task: str | int) -> str:
    """What the validation loss of a task is."""
    return next(row.title for row in metrics_of(kind_of(task)) if row.is_loss)


def heading(name: str) -> str:
    """A metric's title with its unit, where that is per cent: `Acc2 Non0 %`, `MAE`."""
    row = METRICS[name]
    return row.title + (" %" if row.unit == "%" else "")


def headings_of(names: Collection[str]) -> dict[str, str]:
    """The headings of those metrics that occur among `names`, in the order of tables."""
    return {name: heading(name) for name in METRICS if name in names}


def shown(name: str, value: float) -> float:
    """A metric's value in the unit of its heading."""
    return 100 * value if METRICS[name].unit == "%" else value


def show(name: str, value: float, digits: int = 1) -> str:
    """A metric's value as text: per cent with `digits` decimals, anything else with two more, `–` for NaN."""
    if math.isnan(value):
        return "–"
    return f"{shown(name, value):.{digits if METRICS[name].unit == '%' else digits + 2}f}"


def unit_note(names: Collection[str]) -> str:
    """What a table of these metrics says below it: the units of their kind of models, and its protocols."""
    rows = metrics_of(next((row.kind for name, row in METRICS.items() if name in names), "classes"))
    units = []
    for unit, text in (("%", "in per cent"), ("", "as they are"), ("nats", "in nats")):
        families = list(dict.fromkeys(row.family or row.title for row in rows if row.unit == unit))
        if families:
            units.append(f"{_listed(families)} {text}")
    endings = [row.title.rpartition(" ")[2] for row in rows]
    protocols = [f"{name}: {text}" for name, text in PROTOCOLS.items() if name in endings]
    return ", ".join(units) + "." + (f" {'; '.join(protocols)}." if protocols else "")


def _listed(words: list[str]) -> str:
    """Words as a sentence lists them: `a`, `a and b`, `a, b and c`."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last
