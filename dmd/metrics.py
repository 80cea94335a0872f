"""The field's metrics for sentiment in [-3, 3]: MAE, Corr, Acc7, Acc5, Acc3, and Acc2 and F1 in both protocols.

The conventions are those of the published code (mdswyz/DMD `metricsTop.py`, thuiar/MMSA, both after MulT's
`eval_mosei_regression`): classes are values clipped and rounded half to even; Has0 asks `>= 0`; Non0 leaves out the
samples whose label is 0 and asks `> 0`; F1 is the mean over the classes weighted by their share of the labels.
"""

import math

import torch
from torch import Tensor


def sentiment_metrics(prediction: Tensor, label: Tensor) -> dict[str, float]:
    """All metrics of N predictions against N labels, both 1-D tensors [N] on any device; computed in float64.

    Returns mae, corr, acc7, acc5, acc3, acc2_has0, f1_has0, acc2_non0, f1_non0; all but mae and corr are shares in
    [0, 1]. A metric that is not defined is NaN: corr where predictions or labels are constant (so also for one
    sample), acc2_non0 and f1_non0 where every label is 0, and all of them where a prediction is not finite.

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
    if prediction.min() == prediction.max() or label.min() == label.max():
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
