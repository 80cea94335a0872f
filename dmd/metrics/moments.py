"""Metrics as functions of means over samples, so that those of ten thousand resamples are one matrix product.

Every sample has K numbers, its moments; a metric is a function of their means. Of the mean of a score they are the
score and whether the protocol counts the sample, of Pearson's r the first and second moments, of F1 the cells of the
confusion. `Metric.moments` of a row says which are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmd.metrics.sentiment import ROUNDING

if TYPE_CHECKING:
    from torch import Tensor

Scores = Callable[["Tensor", "Tensor"], "Tensor"]
"""What a metric takes of each sample, from answers [..., N] or [..., N, L] and labels [N] or [N, L]."""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """A metric as a function of means over samples."""

    of_samples: Scores
    """Answers and labels as the metric reads them -> [..., N, K], float64."""
    value: Callable[[Tensor], Tensor]
    """Means [..., K] over samples -> [...]; NaN where the metric is not defined. A factor that all means share changes
    nothing."""


def of_scores(score: Scores) -> Moments:
    """The mean of a score [..., N] over the samples whose score is not NaN."""

    def of_samples(answers: Tensor, labels: Tensor) -> Tensor:
        import torch

        scores = score(answers, labels).double()
        return torch.stack([scores.nan_to_num(), (~scores.isnan()).double()], -1)

    return Moments(of_samples=of_samples, value=lambda means: means[..., 0] / means[..., 1])


def of_correlation(convert: Callable[[Tensor], Tensor] = lambda values: values) -> Moments:
    """Pearson's r of converted answers and labels."""

    def of_samples(answers: Tensor, labels: Tensor) -> Tensor:
        import torch

        x = convert(answers).double()
        y = convert(labels).double().expand_as(x)
        return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], -1)

    def value(means: Tensor) -> Tensor:
        import torch

        x, y, xx, yy, xy = (means[..., 1:] / means[..., :1]).unbind(-1)
        spread = torch.stack([xx - x * x, yy - y * y])
        constant = (spread <= ROUNDING**2 * torch.stack([xx, yy])).any(0)
        r = (xy - x * y) / spread.clamp_min(0).prod(0).sqrt()
        return r.masked_fill(constant, torch.nan)

    return Moments(of_samples=of_samples, value=value)


def of_weighted_f1(
    is_positive: Callable[[Tensor], Tensor], *, counts: Callable[[Tensor], Tensor] | None = None
) -> Moments:
    """F1 of positive and of other samples, weighted by the labels' shares.

    Args:
        is_positive: answers or labels -> booleans.
        counts: labels [N] -> which samples count; None: all.
    """

    def of_samples(answers: Tensor, labels: Tensor) -> Tensor:
        cells = _cells(is_positive(answers), is_positive(labels), 2).flatten(-2)
        return cells if counts is None else cells * counts(labels).double()[..., None]

    return Moments(of_samples=of_samples, value=lambda means: weighted_f1_of(means.unflatten(-1, (-1, _CELLS))))


def of_class_f1(average: Callable[[Tensor], Tensor]) -> Moments:
    """F1 of class numbers.

    Args:
        average: `weighted_f1_of` or `macro_f1_of`.
    """

    def of_samples(answers: Tensor, labels: Tensor) -> Tensor:
        classes = 1 + int(max(answers.max(), labels.max()))
        return _cells(answers, labels, classes).flatten(-2)

    return Moments(of_samples=of_samples, value=lambda means: average(means.unflatten(-1, (-1, _CELLS))))


def of_emotions(of_one: Callable[[Tensor], Tensor]) -> Moments:
    """The mean over emotions, of booleans [..., N, L], of a metric, over those for which it is defined.

    Args:
        of_one: the cells [..., 2, 3] of an emotion -> [...].
    """

    def of_samples(said: Tensor, has: Tensor) -> Tensor:
        return _cells(said, has, 2).flatten(-3)

    return Moments(of_samples=of_samples, value=lambda means: of_one(means.unflatten(-1, (-1, 2, _CELLS))).nanmean(-1))


_CELLS = 3
"""Of each class: samples that are of it and said to be, samples that are said to be, samples that are."""


def _cells(said: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Class numbers or booleans [...] -> [..., classes, 3], float64."""
    import torch
    import torch.nn.functional as F

    one, other = (F.one_hot(values.long(), classes).double() for values in torch.broadcast_tensors(said, truth))
    return torch.stack([one * other, one, other], -1)


def weighted_f1_of(cells: Tensor) -> Tensor:
    """Cells [..., C, 3] -> F1, mean over the classes weighted by their share of the labels, [...]."""
    truth = cells[..., 2]
    return (_f1(cells).nan_to_num() * truth).sum(-1) / truth.sum(-1)


def macro_f1_of(cells: Tensor) -> Tensor:
    """Cells [..., C, 3] -> F1, mean over the classes that occur, [...]."""
    return _f1(cells).nanmean(-1)


def weighted_accuracy_of(cells: Tensor) -> Tensor:
    """Cells [..., 2, 3] -> the mean of specificity and sensitivity, NaN where one is not defined, [...]."""
    return (cells[..., 0] / cells[..., 2]).mean(-1)


def accuracy_of(cells: Tensor) -> Tensor:
    """Cells [..., C, 3] -> share of the samples whose class is said rightly, [...]."""
    return cells[..., 0].sum(-1) / cells[..., 2].sum(-1)


def _f1(cells: Tensor) -> Tensor:
    """F1 of each class, [..., C]; NaN where neither samples nor answers are of it."""
    return 2 * cells[..., 0] / (cells[..., 1] + cells[..., 2])
