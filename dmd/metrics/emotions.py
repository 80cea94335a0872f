"""Metrics of emotions: whether a model says each of L emotions of a sample against whether the sample has it, booleans
[N] of one emotion or [..., N, L] of all; and the loss of a multi-label model.

Of a classifier every class is taken against all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EVEN = 0.5
"""Probability above which an emotion is said; its logit is 0."""


def says_emotions(logits: Tensor) -> Tensor:
    """Whether each emotion is more likely than `EVEN`, like the logits."""
    return logits > 0


def one_of(classes: Tensor, count: int) -> Tensor:
    """Class numbers [...] as booleans [..., count], of which one is true."""
    import torch.nn.functional as F

    return F.one_hot(classes.long(), count).bool()


def binary_accuracy(said: Tensor, has: Tensor) -> float:
    """Share of samples [N] for which the emotion is said rightly."""
    return float((said == has).double().mean())


def weighted_accuracy(said: Tensor, has: Tensor) -> float:
    """(TP * N / P + TN) / 2N of P samples with the emotion and N without (Zadeh et al., ACL 2018), which is the mean of
    sensitivity and specificity; NaN where all samples have it, or none."""
    positives, negatives = int(has.sum()), int((~has).sum())
    if not positives or not negatives:
        return math.nan
    right_positives, right_negatives = int((said & has).sum()), int((~said & ~has).sum())
    return (right_positives * negatives / positives + right_negatives) / (2 * negatives)


def mean_over_emotions(of_one: Callable[[Tensor, Tensor], float]) -> Callable[[Tensor, Tensor], float]:
    """The mean of a metric over the emotions for which it is defined; of booleans [N, L]. NaN where it is for none."""

    def metric(said: Tensor, has: Tensor) -> float:
        values = [of_one(said[:, number], has[:, number]) for number in range(has.shape[1])]
        known = [value for value in values if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan

    return metric


def share_right(said: Tensor, has: Tensor) -> Tensor:
    """Share of the emotions that are said rightly of each sample, [..., N]."""
    return (said == has).double().mean(-1)


def binary_cross_entropy(logits: Tensor, has: Tensor) -> float:
    """Mean over samples and emotions of the negative logarithm of the probability of what is so; of [N, L]."""
    import torch.nn.functional as F

    return float(F.binary_cross_entropy_with_logits(logits, has))
