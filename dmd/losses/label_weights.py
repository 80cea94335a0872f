"""Weights of samples by how rare their labels are: label distribution smoothing.

Yang et al., Delving into Deep Imbalanced Regression, ICML 2021 (https://arxiv.org/abs/2102.09554): labels near each
other are evidence for each other, so the density of a sentiment is the histogram of the train split's labels, smoothed
by a Gaussian kernel, and a sample weighs its inverse. The density of a class is its frequency. Weights have the mean 1
over the split that was counted.

A density is no less than that of FEWEST samples of one label, nor than the highest one over MOST_RATIO, so that no
sample weighs more than MOST_RATIO times another, nor more than MOST_RATIO. The published code limits the counts of
inverse weights to [5, 1000] before it smooths them (YyzHarry/imbalanced-regression@c37d6f4, imdb-wiki-dir/datasets.py):
5 samples at least, and a ratio of 200 at most. Here bins are finer than labels, so the density is limited instead.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BINS_IN_WIDTH = 10
"""Bins of the histogram in the width (standard deviation) of the kernel."""
KERNEL_WIDTHS = 4
"""Widths from its centre at which the kernel is cut off."""
MOST_BINS = 100_000
FEWEST = 5
"""Samples of one label whose density is the lowest that counts."""
MOST_RATIO = 200
"""Of two weights."""
_KERNEL_PEAK = 1 / math.sqrt(2 * math.pi)
USUAL_PART = 1 / 12
"""Width over the range of the labels, for a message: 0.5 of sentiments in [-3, 3]."""


class LabelWeights(nn.Module):
    """The weight of each label; no part of a checkpoint, nor of what predicts.

    Args:
        low: the lowest label.
        high: the highest one; others weigh what the nearer of both does.
        step: distance of two labels that have weights of their own.
    """

    def __init__(self, *, low: float, high: float, step: float) -> None:
        super().__init__()
        self.low = low
        self.step = step
        bins = round((high - low) / step) + 1
        self.register_buffer("weights", torch.ones(bins), persistent=False)

    def forward(self, labels: Tensor) -> Tensor:
        """Weights like `labels`, sentiments or class numbers."""
        return self.get_buffer("weights")[self._bins(labels)].to(labels.dtype)

    def span(self) -> tuple[float, float]:
        """The least and the largest weight of the split that was counted."""
        weights = self.get_buffer("weights")
        counted = weights[weights > 0]
        return float(counted.min()), float(counted.max())

    def _bins(self, labels: Tensor) -> Tensor:
        return ((labels - self.low) / self.step).round().long().clamp(0, len(self.get_buffer("weights")) - 1)

    def count(self, parts: Iterable[Tensor], *, smooth: bool) -> "LabelWeights":
        """Take the weights of a split, of whose labels these are the parts, float32; returns itself."""
        counts = torch.zeros(len(self.get_buffer("weights")), dtype=torch.float64)
        for labels in parts:
            counts += torch.bincount(self._bins(labels), minlength=len(counts))
        density = _smoothed(counts) if smooth else counts
        alone = _KERNEL_PEAK if smooth else 1.0  # density of one sample
        density = density.clamp(min=max(FEWEST * alone, float(density.max()) / MOST_RATIO))
        weights = torch.where(counts > 0, 1 / density, 0)
        self.get_buffer("weights").copy_(weights * (counts.sum() / (counts * weights).sum()))
        return self


def check_width(*, low: float, high: float, width: float) -> None:
    """Raise ValueError for a kernel that is far too narrow for labels from `low` to `high`."""
    if (high - low) * BINS_IN_WIDTH / width > MOST_BINS:
        raise ValueError(
            f"objective.label_density_smoothing is {width:g}, far too narrow for labels from {low:g} to {high:g}; give "
            f"a part of their range, such as {(high - low) * USUAL_PART:.1g}, or 0 for none"
        )


def of_sentiments(parts: Iterable[Tensor], *, low: float, high: float, width: float) -> LabelWeights:
    """The weights of sentiments.

    Args:
        parts: of the labels, float32, one after the other.
        low: the lowest of them.
        high: the highest.
        width: standard deviation of the kernel, in units of the labels.

    Raises:
        ValueError: a width that is far too small for the range of the labels.
    """
    check_width(low=low, high=high, width=width)
    return LabelWeights(low=low, high=high, step=width / BINS_IN_WIDTH).count(parts, smooth=True)


def of_classes(parts: Iterable[Tensor], classes: int) -> LabelWeights:
    """The weights of class numbers, whose sum is the same for each class of FEWEST samples or more."""
    return LabelWeights(low=0, high=classes - 1, step=1).count(parts, smooth=False)


def _smoothed(counts: Tensor) -> Tensor:
    """Counts [bins] smoothed by the kernel; nothing lies beyond the ends."""
    radius = min(KERNEL_WIDTHS * BINS_IN_WIDTH, len(counts) - 1)
    places = torch.arange(-radius, radius + 1, dtype=counts.dtype) / BINS_IN_WIDTH
    kernel = (-places.square() / 2).exp() * _KERNEL_PEAK
    return F.conv1d(counts[None, None], kernel[None, None], padding=radius)[0, 0]
