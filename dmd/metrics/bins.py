"""Metrics of CH-SIMS on its own scale [-1, 1], as thuiar/MMSA computes them (`eval_sims_regression`).

Predictions and labels [..., N] are clipped to [-1, 1] first. Bins are open below and closed above; a value as near to
an edge as a float32 is to a decimal number lies on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dmd.metrics.sentiment import ROUNDING, correlation, weighted_f1

if TYPE_CHECKING:
    from torch import Tensor

EDGES: dict[int, tuple[float, ...]] = {2: (0.0,), 3: (-0.1, 0.1), 5: (-0.7, -0.1, 0.1, 0.7)}
"""By the number of bins, the edges between them."""


def to_bins(values: Tensor, bins: int) -> Tensor:
    """The bin of each value, int64 in [0, bins), of 2, 3 or 5 bins."""
    first, *rest = [(values > edge + ROUNDING).long() for edge in EDGES[bins]]
    return sum(rest, first)


def clipped_error(prediction: Tensor, label: Tensor) -> Tensor:
    """Absolute error of each sample, [..., N]."""
    return (clip(prediction) - clip(label)).abs()


def clipped_correlation(prediction: Tensor, label: Tensor) -> float:
    """Pearson's r."""
    return correlation(clip(prediction), clip(label))


def right_bin(prediction: Tensor, label: Tensor, *, bins: int) -> Tensor:
    """1 for each sample in the right bin, [..., N]."""
    return (to_bins(prediction, bins) == to_bins(label, bins)).double()


def f1_of_two_bins(prediction: Tensor, label: Tensor) -> float:
    """Weighted F1 of the values above 0 against the others."""
    return weighted_f1(is_positive(prediction), is_positive(label))


def is_positive(values: Tensor) -> Tensor:
    """Which of two bins each value is in."""
    return to_bins(values, 2) == 1


def clip(values: Tensor) -> Tensor:
    """Values as the protocol reads them."""
    return values.clamp(-1, 1)
