"""The metrics, one row each, the protocols that report them, and how they are shown. Whatever lists metrics reads this
table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from dmd.metrics.bins import clip, clipped_correlation, clipped_error, f1_of_two_bins, is_positive, right_bin
from dmd.metrics.classes import accuracy, cross_entropy, f1_macro, f1_weighted, right_answer
from dmd.metrics.emotions import (
    binary_accuracy,
    binary_cross_entropy,
    mean_over_emotions,
    share_right,
    weighted_accuracy,
)
from dmd.metrics.moments import (
    Moments,
    accuracy_of,
    macro_f1_of,
    of_class_f1,
    of_correlation,
    of_emotions,
    of_scores,
    of_weighted_f1,
    weighted_accuracy_of,
    weighted_f1_of,
)
from dmd.metrics.sentiment import (
    absolute_error,
    correlation,
    f1_has0,
    f1_non0,
    is_above_zero,
    is_not_negative,
    is_not_zero,
    mean_of,
    right_class,
    right_sign_has0,
    right_sign_non0,
    weighted_f1,
)
from dmd.model.config import Kind, Task, kind_of

if TYPE_CHECKING:
    from torch import Tensor

View = Literal["headline", "hparams", "configs", "missing", "bootstrap", "paper"]
"""Where some of the metrics are shown, beside the tables, which show all:
headline: the epoch line of a training and the report's figure of the heads;
hparams: TensorBoard's hyperparameter page, beside the validation loss;
configs: the report's figure over configs and seeds;
missing: the figure of `dmd missing`;
bootstrap: the report's paired comparison of configs; needs `resampled`;
paper: the columns of the report's table for a paper, in the order of the field."""
Reads = Literal["answers", "stored", "emotions"]
"""What a metric is computed of, in float64, beside the labels of the same kind:
answers: sentiments [N] in the units of the source, or logits [N, outputs];
stored: sentiments [N] on the scale [-3, 3] of the shards;
emotions: which emotions a model says, booleans [N, L]; of a classifier the one of the most probable class."""
NAME = "NAME"
"""In a row of which there is one for each emotion: what stands for the emotion."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Which metrics the field reports on a data set; the set's index says its protocol."""

    name: str
    kinds: tuple[Kind, ...]
    """The models that it is for; models of another kind have the protocol `DEFAULTS` of theirs."""
    about: str
    """What a table says below it."""
    endings: Mapping[str, str] = field(default_factory=dict)
    """What the last word of a title means."""


_PROTOCOL_ROWS = (
    Protocol(
        name="mosi",
        kinds=("regression",),
        about="CMU-MOSI and CMU-MOSEI; classes and signs on the scale [-3, 3]",
        endings={"Has0": "all samples, >= 0 against < 0", "Non0": "without the labels that are 0, > 0 against < 0"},
    ),
    Protocol(
        name="sims",
        kinds=("regression",),
        about="CH-SIMS",
        endings={
            "SIMS": "predictions and labels clipped to [-1, 1]; Acc2 and F1 of <= 0 against > 0, Acc3 with the edges "
            "-0.1 and 0.1, Acc5 also with -0.7 and 0.7"
        },
    ),
    Protocol(name="classes", kinds=("classes",), about="one of several classes"),
    Protocol(
        name="iemocap",
        kinds=("classes", "multilabel"),
        about="IEMOCAP; each emotion against all others, F1 weighted by the share of both",
    ),
    Protocol(name="meld", kinds=("classes",), about="MELD; F1 weighted by the share of the labels"),
    Protocol(
        name="emotions",
        kinds=("multilabel",),
        about="emotions of CMU-MOSEI; each for itself, WAcc the mean of sensitivity and specificity, F1 weighted by "
        "the share of both; means over the emotions for which they are defined",
    ),
)
PROTOCOLS: dict[str, Protocol] = {row.name: row for row in _PROTOCOL_ROWS}
"""All protocols by name (`data_shards.labels.Protocol`)."""
DEFAULTS: dict[Kind, str] = {"regression": "mosi", "classes": "classes", "multilabel": "emotions"}
"""The protocol of models where the data says none of theirs."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric."""

    name: str
    """What programs read: Python, JSON, JSON lines, TensorBoard's tags. `f1.NAME` stands for one row per emotion."""
    title: str
    """What people read: tables, CSV files beside them, figures, the terminal."""
    about: str
    """What it is, for the documentation."""
    protocols: tuple[str, ...]
    """Those that report it."""
    kinds: tuple[Kind, ...] = ("regression", "classes", "multilabel")
    """Whose models have it, of those of its protocols."""
    unit: Literal["%", "nats", ""]
    """Of what people read. A metric in per cent is a share in [0, 1] for programs."""
    function: Callable[[Tensor, Tensor], float]
    """Its value of all samples, from what it `reads`; of one emotion from its booleans [N]."""
    reads: Reads = "answers"
    of_samples: Callable[[Tensor, Tensor], Tensor] | None = None
    """Of a mean over samples: what each adds, NaN where it is left out; from sentiments or class numbers [..., N] and
    labels [N], or booleans [..., N, L] and [N, L]."""
    moments: Moments | None = None
    """Of one that is no mean over samples: how it is computed of many resamples at once."""
    higher_is_better: bool = True
    is_loss: bool = False
    """Whether it is the validation loss of its models, by which checkpoints and trials are selected."""
    family: str = ""
    """What a note calls it together with others of its unit; empty: its title."""
    views: Mapping[View, int] = field(default_factory=dict)
    """Which views show it, and its place there; those of equal place follow the order of this table."""

    def fits(self, protocol: str, kind: Kind) -> bool:
        """Whether models of a kind have it in a protocol."""
        return protocol in self.protocols and kind in self.kinds

    @property
    def resampled(self) -> Moments | None:
        """How it is computed of many resamples at once; None where it cannot be."""
        return self.moments if self.of_samples is None else of_scores(self.of_samples)

    @property
    def of_each(self) -> bool:
        """Whether there is one for each emotion."""
        return self.name.endswith(f".{NAME}")

    def of_emotion(self, emotion: str) -> Metric:
        """The row of one emotion."""
        assert self.of_each
        name, title = (text.removesuffix(NAME) + emotion for text in (self.name, self.title))
        return replace(self, name=name, title=title)


def _accuracy_in_classes(classes: int, views: Mapping[View, int]) -> Metric:
    of_samples = partial(right_class, bound=classes // 2)
    return Metric(
        name=f"acc{classes}",
        title=f"Acc{classes}",
        about=f"accuracy in the {classes} classes of the sentiment in [-3, 3] clipped and rounded half to even",
        protocols=("mosi",),
        unit="%",
        function=mean_of(of_samples),
        reads="stored",
        of_samples=of_samples,
        family="Acc",
        views=views,
    )


def _accuracy_in_bins(bins: int, views: Mapping[View, int]) -> Metric:
    of_samples = partial(right_bin, bins=bins)
    return Metric(
        name=f"acc{bins}_sims",
        title=f"Acc{bins} SIMS",
        about=f"accuracy in the {bins} bins of CH-SIMS",
        protocols=("sims",),
        unit="%",
        function=mean_of(of_samples),
        of_samples=of_samples,
        family="Acc",
        views=views,
    )


def _of_emotions(
    name: str,
    title: str,
    about: str,
    function: Callable[[Tensor, Tensor], float],
    *,
    of_cells: Callable[[Tensor], Tensor],
    protocols: tuple[str, ...],
    views: Mapping[View, int],
) -> tuple[Metric, Metric]:
    """A row per emotion, and their mean, which alone is in views."""
    each = Metric(
        name=f"{name}.{NAME}",
        title=f"{title} {NAME}",
        about=f"{about} of the emotion",
        protocols=protocols,
        unit="%",
        function=function,
        reads="emotions",
        family=title,
    )
    mean = replace(
        each,
        name=f"{name}_mean",
        title=f"{title} mean",
        about=f"mean over the emotions of `{each.name}`",
        function=mean_over_emotions(function),
        moments=of_emotions(of_cells),
        views=views,
    )
    return each, mean


_ROWS = (
    Metric(
        name="mae",
        title="MAE",
        about="mean absolute error, in the units of the labels",
        protocols=("mosi", "sims"),
        unit="",
        function=mean_of(absolute_error),
        of_samples=absolute_error,
        higher_is_better=False,
        is_loss=True,
        views={"headline": 1, "configs": 1, "missing": 1, "bootstrap": 1, "paper": 1},
    ),
    Metric(
        name="corr",
        title="Corr",
        about="Pearson's correlation",
        protocols=("mosi",),
        unit="",
        function=correlation,
        moments=of_correlation(),
        views={"headline": 2, "hparams": 4, "configs": 1, "bootstrap": 1, "paper": 2},
    ),
    _accuracy_in_classes(7, views={"headline": 4, "hparams": 3, "configs": 1, "bootstrap": 1, "paper": 3}),
    _accuracy_in_classes(5, views={}),
    _accuracy_in_classes(3, views={}),
    Metric(
        name="acc2_has0",
        title="Acc2 Has0",
        about="accuracy of the sign over all samples",
        protocols=("mosi",),
        unit="%",
        function=mean_of(right_sign_has0),
        reads="stored",
        of_samples=right_sign_has0,
        family="Acc",
        views={"bootstrap": 1, "paper": 4},
    ),
    Metric(
        name="f1_has0",
        title="F1 Has0",
        about="weighted F1 of the sign over all samples",
        protocols=("mosi",),
        unit="%",
        function=f1_has0,
        reads="stored",
        family="F1",
        moments=of_weighted_f1(is_not_negative),
        views={"paper": 6},
    ),
    Metric(
        name="acc2_non0",
        title="Acc2 Non0",
        about="accuracy of the sign without the samples whose label is 0",
        protocols=("mosi",),
        unit="%",
        function=mean_of(right_sign_non0),
        reads="stored",
        of_samples=right_sign_non0,
        family="Acc",
        views={"headline": 3, "hparams": 1, "configs": 1, "missing": 1, "bootstrap": 1, "paper": 5},
    ),
    Metric(
        name="f1_non0",
        title="F1 Non0",
        about="weighted F1 of the sign without the samples whose label is 0",
        protocols=("mosi",),
        unit="%",
        function=f1_non0,
        reads="stored",
        family="F1",
        moments=of_weighted_f1(is_above_zero, counts=is_not_zero),
        views={"hparams": 2, "configs": 1, "bootstrap": 1, "paper": 7},
    ),
    Metric(
        name="mae_sims",
        title="MAE SIMS",
        about="mean absolute error of predictions and labels clipped to [-1, 1]",
        protocols=("sims",),
        unit="",
        function=mean_of(clipped_error),
        of_samples=clipped_error,
        higher_is_better=False,
        views={"bootstrap": 1, "paper": 1},
    ),
    Metric(
        name="corr_sims",
        title="Corr SIMS",
        about="Pearson's correlation of predictions and labels clipped to [-1, 1]",
        protocols=("sims",),
        unit="",
        function=clipped_correlation,
        moments=of_correlation(clip),
        views={"headline": 2, "hparams": 4, "configs": 1, "bootstrap": 1, "paper": 2},
    ),
    _accuracy_in_bins(5, views={"headline": 4, "hparams": 3, "configs": 1, "bootstrap": 1, "paper": 3}),
    _accuracy_in_bins(3, views={"bootstrap": 1, "paper": 4}),
    _accuracy_in_bins(2, views={"headline": 3, "hparams": 1, "configs": 1, "missing": 1, "bootstrap": 1, "paper": 5}),
    Metric(
        name="f1_sims",
        title="F1 SIMS",
        about="weighted F1 of the two bins of CH-SIMS",
        protocols=("sims",),
        unit="%",
        function=f1_of_two_bins,
        family="F1",
        moments=of_weighted_f1(is_positive),
        views={"hparams": 2, "configs": 1, "bootstrap": 1, "paper": 6},
    ),
    Metric(
        name="acc",
        title="Acc",
        about="accuracy",
        protocols=("classes", "iemocap", "meld"),
        kinds=("classes",),
        unit="%",
        function=accuracy,
        of_samples=right_answer,
        family="Acc",
        views={"headline": 1, "hparams": 1, "configs": 1, "missing": 1, "bootstrap": 1, "paper": 1},
    ),
    Metric(
        name="f1_weighted",
        title="F1 weighted",
        about="F1, mean over the classes weighted by their share of the labels",
        protocols=("classes", "meld"),
        unit="%",
        function=f1_weighted,
        family="F1",
        moments=of_class_f1(weighted_f1_of),
        views={"headline": 1, "hparams": 1, "configs": 1, "missing": 1, "bootstrap": 1, "paper": 2},
    ),
    Metric(
        name="f1_macro",
        title="F1 macro",
        about="F1, mean over the classes that occur",
        protocols=("classes",),
        unit="%",
        function=f1_macro,
        family="F1",
        moments=of_class_f1(macro_f1_of),
        views={"headline": 1, "hparams": 1, "configs": 1, "bootstrap": 1, "paper": 3},
    ),
    Metric(
        name="cross_entropy",
        title="CE",
        about="cross entropy",
        protocols=("classes", "iemocap", "meld"),
        kinds=("classes",),
        unit="nats",
        function=cross_entropy,
        higher_is_better=False,
        is_loss=True,
        views={"headline": 1, "hparams": 1, "configs": 1, "paper": 5},
    ),
    *_of_emotions(
        "acc",
        "Acc",
        "accuracy",
        binary_accuracy,
        of_cells=accuracy_of,
        protocols=("iemocap",),
        views={"headline": 2, "hparams": 2, "configs": 1, "bootstrap": 1, "paper": 2},
    ),
    *_of_emotions(
        "wacc",
        "WAcc",
        "weighted accuracy (TP * N / P + TN) / 2N",
        weighted_accuracy,
        of_cells=weighted_accuracy_of,
        protocols=("emotions",),
        views={"headline": 1, "hparams": 1, "configs": 1, "missing": 1, "bootstrap": 1, "paper": 2},
    ),
    *_of_emotions(
        "f1",
        "F1",
        "F1, mean over with and without it weighted by their shares,",
        weighted_f1,
        of_cells=weighted_f1_of,
        protocols=("iemocap", "emotions"),
        views={"headline": 1, "hparams": 1, "configs": 1, "missing": 1, "bootstrap": 1, "paper": 3},
    ),
    Metric(
        name="acc_each",
        title="Acc of each",
        about="share of samples and emotions that are said rightly",
        protocols=("iemocap", "emotions"),
        kinds=("multilabel",),
        unit="%",
        function=mean_of(share_right),
        reads="emotions",
        of_samples=share_right,
        family="Acc",
        views={"missing": 1, "bootstrap": 1, "paper": 4},
    ),
    Metric(
        name="binary_cross_entropy",
        title="BCE",
        about="binary cross entropy, mean over the emotions",
        protocols=("iemocap", "emotions"),
        kinds=("multilabel",),
        unit="nats",
        function=binary_cross_entropy,
        higher_is_better=False,
        is_loss=True,
        views={"headline": 3, "hparams": 3, "configs": 2, "paper": 5},
    ),
)
METRICS: dict[str, Metric] = {row.name: row for row in _ROWS}
"""All metrics by name, in the order of tables."""


def metrics_of(protocol: str, kind: Kind, emotions: Sequence[str] = (NAME,)) -> list[Metric]:
    """The metrics of models of a kind in a protocol, those of each emotion by its name."""
    found: list[Metric] = []
    for row in METRICS.values():
        if row.fits(protocol, kind):
            found += [row.of_emotion(emotion) for emotion in emotions] if row.of_each else [row]
    return found


def metric(name: str) -> Metric:
    """The row of a name, which may be that of an emotion. Raises KeyError for another name."""
    row = METRICS[_row_of(name)]
    return row if row.name == name else row.of_emotion(name.partition(".")[2])


def _row_of(name: str) -> str:
    """The name of the row that a metric's name, which may be that of an emotion, belongs to."""
    return name if name in METRICS else f"{name.partition('.')[0]}.{NAME}"


def known_metrics(names: Iterable[str]) -> list[str]:
    """Those of the names that are a metric's, in the order of tables; emotions in the order of the names."""
    order = {row: place for place, row in enumerate(METRICS)}
    return sorted((name for name in names if _row_of(name) in order), key=lambda name: order[_row_of(name)])


def in_view(view: View, names: Collection[str]) -> list[str]:
    """Those of the metrics `names` that a view shows, in its order."""
    rows = [row for row in METRICS.values() if row.name in names and view in row.views]
    return [row.name for row in sorted(rows, key=lambda row: row.views[view])]


def loss_title(task: Task) -> str:
    """What the validation loss of a task is."""
    if task == "auto":
        return "loss"
    kind = kind_of(task)
    return next(row.title for row in metrics_of(DEFAULTS[kind], kind) if row.is_loss)


def heading(name: str) -> str:
    """A metric's title with its unit, where that is per cent: `Acc2 Non0 %`, `MAE`."""
    row = metric(name)
    return row.title + (" %" if row.unit == "%" else "")


def headings_of(names: Collection[str]) -> dict[str, str]:
    """The headings of those metrics that occur among `names`, in the order of tables."""
    return {name: heading(name) for name in known_metrics(names)}


def shown(name: str, value: float) -> float:
    """A metric's value in the unit of its heading."""
    return 100 * value if metric(name).unit == "%" else value


def show(name: str, value: float, digits: int = 1) -> str:
    """A metric's value as text: per cent with `digits` decimals, anything else with two more, `–` for NaN."""
    if math.isnan(value):
        return "–"
    return f"{shown(name, value):.{digits if metric(name).unit == '%' else digits + 2}f}"


def protocol_of(names: Collection[str]) -> Protocol | None:
    """The protocol whose metrics these are: the one that has them and no others, else the first that has all of them;
    None for no metric's name."""
    rows = {_row_of(name) for name in known_metrics(names)}
    fitting: list[Protocol] = []
    for protocol in PROTOCOLS.values():
        for kind in protocol.kinds:
            own = {row.name for row in METRICS.values() if row.fits(protocol.name, kind)}
            if rows == own:
                return protocol
            fitting += [protocol] if rows <= own else []
    return fitting[0] if rows and fitting else None


def unit_note(names: Collection[str]) -> str:
    """What a table of these metrics says below it: their units and their protocol."""
    rows = [metric(name) for name in known_metrics(names)]
    units = []
    for unit, text in (("%", "in per cent"), ("", "as they are"), ("nats", "in nats")):
        families = list(dict.fromkeys(row.family or row.title for row in rows if row.unit == unit))
        if families:
            units.append(f"{_listed(families)} {text}")
    protocol = protocol_of(names)
    if protocol is None:
        return f"{', '.join(units)}."
    endings = [f" {name}: {text}." for name, text in protocol.endings.items()]
    return f"{', '.join(units)}. Protocol {protocol.name}: {protocol.about}.{''.join(endings)}"


def _listed(words: list[str]) -> str:
    """Words as a sentence lists them: `a`, `a and b`, `a, b and c`."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last
