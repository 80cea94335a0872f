"""Mean and standard deviation of each feature over the train split, in one pass over its frames and in float64.

A frame of zeros is padding and does not count. Sums are computed shard by shard and merged in the order of the index,
so they do not depend on the number of processes. They are sums of distances to the first frame, so a constant feature
has a standard deviation of exactly 0.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _empty() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass
class Moments:
    """Sums over the frames of one modality; the arrays are [D], and empty before the first frame."""

    count: int = 0
    pivot: NDArray[np.float64] = field(default_factory=_empty)
    """The first frame."""
    total: NDArray[np.float64] = field(default_factory=_empty)
    """Sum of the distances to the pivot."""
    squares: NDArray[np.float64] = field(default_factory=_empty)
    """Sum of their squares."""

    def add(self, frames: NDArray[Any]) -> None:
        """Add one sample [T, D]."""
        unpadded = frames[frames.any(axis=1)].astype(np.float64)
        if len(unpadded):
            pivot = self.pivot if self.count else unpadded[0]
            shifted = unpadded - pivot
            total = np.add.reduce(shifted, axis=0)
            squares = np.add.reduce(shifted * shifted, axis=0)
            self.merge(Moments(len(unpadded), pivot, total, squares))

    def merge(self, other: "Moments") -> None:
        """Add the sums over other frames."""
        if self.count and other.count:
            shift = other.pivot - self.pivot
            self.squares = self.squares + other.squares + shift * (2 * other.total + other.count * shift)
            self.total = self.total + other.total + other.count * shift
            self.count += other.count
        elif other.count:
            self.count = other.count
            self.pivot = other.pivot
            self.total = other.total
            self.squares = other.squares

    def describe(self, dim: int) -> dict[str, list[float]]:
        """`mean` and `std` of each of `dim` features; zeros where no frame was seen."""
        if not self.count:
            return {"mean": [0.0] * dim, "std": [0.0] * dim}
        offset = self.total / self.count
        variance = np.maximum(self.squares / self.count - offset * offset, 0)
        return {"mean": (self.pivot + offset).tolist(), "std": np.sqrt(variance).tolist()}


def merge_moments(into: dict[str, Moments], more: dict[str, Moments]) -> None:
    """Add `more`, by modality, to `into`."""
    for modality, moments in more.items():
        into.setdefault(modality, Moments()).merge(moments)


def describe_moments(moments: dict[str, Moments], dims: dict[str, int]) -> dict[str, dict[str, list[float]]]:
    """Statistics by modality, for the index; {} for a set without a train split."""
    return {modality: found.describe(dims[modality]) for modality, found in sorted(moments.items())}
