"""The field's metrics for sentiment in [-3, 3]: MAE, Corr, Acc7, Acc5, Acc3, and Acc2 and F1 in both protocols; and
accuracy, F1 and confusion of classifiers.

The conventions are those of the published code (mdswyz/DMD `metricsTop.py`, thuiar/MMSA, both after MulT's
`eval_mosei_regression`): classes are values clipped and rounded half to even; Has0 asks `>= 0`; Non0 leaves out the
samples whose label is 0 and asks `> 0`; F1 is the mean over the classes weighted by their share of the labels.

The classes of a classifier are those of Acc7 and Acc5, and of Has0 for two; three are the sign of the label, as in
MMSA's `classification_labels`, where Acc3 rounds.
"""

import math
from collections.abc import Collection

import torch
from torch import Tensor

ROUNDING = 2e-6
"""Values whose range is at most this part of the largest are constant, but for the rounding of a float32 network."""
CLASS_METRICS = ("acc", "f1_weighted", "f1_macro", "cross_entropy")
METRIC_TITLES = {
    "mae": "MAE",
    "corr": "Corr",
    "acc7": "Acc7",
    "acc5": "Acc5",
    "acc3": "Acc3",
    "acc2_has0": "Acc2 Has0",
    "f1_has0": "F1 Has0",
    "acc2_non0": "Acc2 Non0",
    "f1_non0": "F1 Non0",
    "acc": "Acc",
    "f1_weighted": "F1 weighted",
    "f1_macro": "F1 macro",
    "cross_entropy": "CE",
}
"""What tables call the metrics, in their order: those of a regression, then `CLASS_METRICS`, those of a classifier."""

SHARES = frozenset(METRIC_TITLES) - {"mae", "corr", "cross_entropy"}
"""Metrics that are shares in [0, 1] in Python, JSON, JSON lines and TensorBoard, and per cent in all that people read:
tables, CSV files beside them, figures, the terminal."""


def loss_title(task: str | int) -> str:
    """What the validation loss of a task is."""
    return "MAE" if task == "regression" else "CE"


def heading(name: str) -> str:
    """A metric's title with its unit: `Acc2 Non0 %`, `MAE`."""
    return METRIC_TITLES[name] + (" %" if name in SHARES else "")


def headings_of(names: Collection[str]) -> dict[str, str]:
    """The headings of those metrics that occur among `names`, in the order of tables."""
    return {name: heading(name) for name in METRIC_TITLES if name in names}


def shown(name: str, value: float) -> float:
    """A metric's value in the unit of its heading."""
    return 100 * value if name in SHARES else value


def show(name: str, value: float, digits: int = 1) -> str:
    """A metric's value as text: per cent with `digits` decimals, anything else with two more, `–` for NaN."""
    if math.isnan(value):
        return "–"
    return f"{shown(name, value):.{digits if name in SHARES else digits + 2}f}"


def unit_note(names: Collection[str]) -> str:
    """What a table of these metrics says below it: the unit, and the protocols of Acc2 and F1 where they occur."""
    if "mae" not in names:
        return "Acc and F1 in per cent, CE in nats."
    return (
        "Acc and F1 in per cent, MAE and Corr as they are. Has0: all samples, >= 0 against < 0; Non0: without the "
        "labels that are 0, > 0 against < 0."
    )


def to_classes(label: Tensor, classes: int) -> Tensor:
    """Class number of each sentiment, int64 in [0, classes), of 2 (negative or not), 3 (by sign), 5 or 7 classes."""
    if classes == 2:
        return (label >= 0).long()
    if classes == 3:
        return label.sign().long() + 1
    bound = classes // 2
    return label.clamp(-bound, bound).round().long() + bound


def class_names(classes: int) -> list[str]:
    """What each class number means."""
    if classes == 2:
        return ["negative", "not negative"]
    if classes == 3:
        return ["negative", "neutral", "positive"]
    return [f"{number:+d}" if number else "0" for number in range(-(classes // 2), classes // 2 + 1)]


def head_metrics(prediction: Tensor, label: Tensor) -> dict[str, float]:
    """All metrics of N predictions: sentiments [N] against sentiments, or logits [N, classes] against class numbers."""
    return sentiment_metrics(prediction, label) if prediction.ndim == 1 else class_metrics(prediction, label)


def class_metrics(logits: Tensor, label: Tensor) -> dict[str, float]:
    """acc, f1_weighted, f1_macro and cross_entropy of logits [N, classes] against class numbers [N], in float64.

    F1 is scikit-learn's `f1_score(label, prediction, average="weighted" or "macro")`: over the classes that occur among
    the labels or the predictions. All are NaN where a logit is not finite.

    Raises ValueError for no sample, other shapes, and labels that are no class numbers.
    """
    counts = confusion(logits, label)
    hits, actual, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    occurs = actual + predicted > 0
    f1 = 2 * hits[occurs] / (actual + predicted)[occurs]  # [classes that occur]
    entropy = torch.nn.functional.cross_entropy(logits.detach().to("cpu", torch.float64), label.cpu().long())
    metrics = {
        "acc": float(hits.sum() / counts.sum()),
        "f1_weighted": float((f1 * actual[occurs]).sum() / actual.sum()),
        "f1_macro": float(f1.mean()),
        "cross_entropy": float(entropy),
    }
    return metrics if logits.isfinite().all() else dict.fromkeys(metrics, math.nan)


def confusion(logits: Tensor, label: Tensor) -> Tensor:
    """Counts [classes, classes], float64: true class down, predicted class across.

    Raises ValueError as `class_metrics`.
    """
    if logits.ndim != 2 or logits.shape[:1] != label.shape or not len(label):
        shapes = f"{list(logits.shape)} and {list(label.shape)}"
        raise ValueError(f"logits and labels have shapes {shapes}; give [N, classes] and [N], of at least one sample")
    classes = logits.shape[1]
    numbers = label.detach().cpu().long()
    if not (numbers == label.cpu()).all() or numbers.min() < 0 or numbers.max() >= classes:
        raise ValueError(f"labels are no class numbers from 0 to {classes - 1}; give those of the task")
    flat = numbers * classes + logits.detach().cpu().argmax(1)
    return torch.bincount(flat, minlength=classes**2).view(classes, classes).double()


def sentiment_metrics(prediction: Tensor, label: Tensor) -> dict[str, float]:
    """All metrics of N predictions against N labels, both 1-D tensors [N] on any device; computed in float64.

    Returns mae, corr, acc7, acc5, acc3, acc2_has0, f1_has0, acc2_non0, f1_non0; all but mae and corr are shares in
    [0, 1]. A metric that is not defined is NaN: corr where predictions or labels are constant up to float32 rounding
    (so also for one sample), acc2_non0 and f1_non0 where every label is 0, and all of them where a prediction is not
    finite.

    Raises ValueError for other shapes, for no sample at all and for labels that are not finite.
    """
    if prediction.ndim != 1 or prediction.shape != label.shape or not len(label):
        shapes = f"{list(prediction.shape)} and {list(label.shape)}"
        raise ValueError(f"predictions and labels have shapes {shapes}; give two 1-D tensors of one length, at least 1")
    prediction = prediction.detach().to("cpu", torch.float64)  # [N]
    label = label.detach().to("cpu", torch.float64)  # [N]
    if not label.isfinite().all():
        count = int((~label.isfinite()).sum())
        raise ValueError(f"{count} of {len(label)} labels are not finite; leave those samples out")
    nonzero = label != 0
    metrics = {
        "mae": float((prediction - label).abs().mean()),
        "corr": _correlation(prediction, label),
        "acc7": _class_accuracy(prediction, label, bound=3),
        "acc5": _class_accuracy(prediction, label, bound=2),
        "acc3": _class_accuracy(prediction, label, bound=1),
        "acc2_has0": _accuracy(prediction >= 0, label >= 0),
        "f1_has0": _weighted_f1(prediction >= 0, label >= 0),
        "acc2_non0": _accuracy(prediction[nonzero] > 0, label[nonzero] > 0),
        "f1_non0": _weighted_f1(prediction[nonzero] > 0, label[nonzero] > 0),
    }
    return metrics if prediction.isfinite().all() else dict.fromkeys(metrics, math.nan)


def _correlation(prediction: Tensor, label: Tensor) -> float:
    """Pearson's r; constancy is asked of the values, since a variance of equal values need not round to 0."""
    if any(values.max() - values.min() <= ROUNDING * values.abs().max() for values in (prediction, label)):
        return math.nan
    return float(torch.corrcoef(torch.stack([prediction, label]))[0, 1])


def _class_accuracy(prediction: Tensor, label: Tensor, bound: int) -> float:
    """Share of samples in the right one of the 2 * bound + 1 integer classes."""
    return _accuracy(prediction.clamp(-bound, bound).round(), label.clamp(-bound, bound).round())


def _accuracy(prediction: Tensor, label: Tensor) -> float:
    return float((prediction == label).to(torch.float64).mean())


def _weighted_f1(prediction: Tensor, label: Tensor) -> float:
    """scikit-learn's `f1_score(label, prediction, average="weighted")` for two boolean tensors [N]."""
    total = 0.0
    for positive in (False, True):
        predicted, actual = prediction == positive, label == positive
        size = int(predicted.sum()) + int(actual.sum())
        if size:
            total += 2 * int((predicted & actual).sum()) / size * int(actual.sum())
    return total / len(label) if len(label) else math.nan
