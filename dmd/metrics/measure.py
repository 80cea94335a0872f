"""All metrics of a head's predictions, by the rows of `dmd.metrics.table`."""

import math

import torch
from torch import Tensor

from dmd.metrics.classes import confusion
from dmd.metrics.table import metrics_of


def head_metrics(prediction: Tensor, label: Tensor) -> dict[str, float]:
    """All metrics of N predictions: sentiments [N] against sentiments, or logits [N, classes] against class numbers."""
    return sentiment_metrics(prediction, label) if prediction.ndim == 1 else class_metrics(prediction, label)


def class_metrics(logits: Tensor, label: Tensor) -> dict[str, float]:
    """The metrics of a classifier, of logits [N, classes] against class numbers [N], in float64.

    F1 is over the classes that occur among the labels or the predictions. All metrics are NaN where a logit is not
    finite.

    Raises:
        ValueError: no sample, other shapes, or labels that are no class numbers.
    """
    confusion(logits, label)  # which looks at shapes and labels
    rows = metrics_of("classes")
    if not logits.isfinite().all():
        return {row.name: math.nan for row in rows}
    logits, label = logits.detach().to("cpu", torch.float64), label.detach().cpu().long()
    return {row.name: row.function(logits, label) for row in rows}


def sentiment_metrics(prediction: Tensor, label: Tensor) -> dict[str, float]:
    """The metrics of a regression, of N predictions against N labels, 1-D tensors [N] on any device, in float64.

    Those in per cent are shares in [0, 1] here. A metric that is not defined is NaN: corr where predictions or labels
    are constant up to float32 rounding (so also for one sample), acc2_non0 and f1_non0 where every label is 0, and all
    of them where a prediction is not finite.

    Raises:
        ValueError: other shapes, no sample at all, or labels that are not finite.
    """
    if prediction.ndim != 1 or prediction.shape != label.shape or not len(label):
        shapes = f"{list(prediction.shape)} and {list(label.shape)}"
        raise ValueError(f"predictions and labels have shapes {shapes}; give two 1-D tensors of one length, at least 1")
    prediction = prediction.detach().to("cpu", torch.float64)  # [N]
    label = label.detach().to("cpu", torch.float64)  # [N]
    if not label.isfinite().all():
        count = int((~label.isfinite()).sum())
        raise ValueError(f"{count} of {len(label)} labels are not finite; leave those samples out")
    rows = metrics_of("regression")
    if not prediction.isfinite().all():
        return {row.name: math.nan for row in rows}
    return {row.name: row.function(prediction, label) for row in rows}
