"""Metrics of predicted sentiments [N] against labels [N].

What a sample adds to a metric that is a mean over samples takes predictions [..., N], and is NaN where the metric's
protocol leaves the sample out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 2e-6
"""Values whose range is at most this part of the largest are constant, but for the rounding of a float32 network."""


def mean_of(of_samples: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], float]:
    """The metric that is the mean of what samples add to it; NaN where it leaves out all of them."""

    def metric(prediction: Tensor, label: Tensor) -> float:
        scores = of_samples(prediction, label)
        return float(scores[~scores.isnan()].mean())

    return metric


def absolute_error(prediction: Tensor, label: Tensor) -> Tensor:
    """Of each sample, [..., N]."""
    return (prediction - label).abs()


def right_class(prediction: Tensor, label: Tensor, *, bound: int) -> Tensor:
    """1 for each sample in the right one of the 2 * bound + 1 integer classes, [..., N]."""
    return (prediction.clamp(-bound, bound).round() == label.clamp(-bound, bound).round()).double()


def right_sign_has0(prediction: Tensor, label: Tensor) -> Tensor:
    """1 for each sample on the right side, zeros with the positive ones, [..., N]."""
    return ((prediction >= 0) == (label >= 0)).double()


def right_sign_non0(prediction: Tensor, label: Tensor) -> Tensor:
    """1 for each sample whose label is not 0 on the right side, zeros with the negative ones, [..., N]."""
    return ((prediction > 0) == (label > 0)).double().masked_fill(label == 0, math.nan)


def correlation(prediction: Tensor, label: Tensor) -> float:
    """Pearson's r; constancy is asked of the values, since a variance of equal values need not round to 0."""
    import torch

    if any(values.max() - values.min() <= ROUNDING * values.abs().max() for values in (prediction, label)):
        return math.nan
    return float(torch.corrcoef(torch.stack([prediction, label]))[0, 1])


def f1_has0(prediction: Tensor, label: Tensor) -> float:
    """Weighted F1 of `>= 0` against `< 0` over all samples."""
    return weighted_f1(is_not_negative(prediction), is_not_negative(label))


def f1_non0(prediction: Tensor, label: Tensor) -> float:
    """Weighted F1 of `> 0` against `< 0` over the samples whose label is not 0."""
    nonzero = is_not_zero(label)
    return weighted_f1(is_above_zero(prediction[nonzero]), is_above_zero(label[nonzero]))


def is_not_negative(values: Tensor) -> Tensor:
    """The positive class of Has0, like `values`."""
    return values >= 0


def is_above_zero(values: Tensor) -> Tensor:
    """The positive class of Non0, like `values`."""
    return values > 0


def is_not_zero(label: Tensor) -> Tensor:
    """Which samples Non0 counts, by their labels."""
    return label != 0


def weighted_f1(prediction: Tensor, label: Tensor) -> float:
    """scikit-learn's `f1_score(label, prediction, average="weighted")` for two boolean tensors [N]."""
    total = 0.0
    for positive in (False, True):
        predicted, actual = prediction == positive, label == positive
        size = int(predicted.sum()) + int(actual.sum())
        if size:
            total += 2 * int((predicted & actual).sum()) / size * int(actual.sum())
    return total / len(label) if len(label) else math.nan
