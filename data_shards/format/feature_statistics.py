"""Mean and standard deviation of each feature over the train split, in one pass over its frames and in float64.

A frame of zeros is padding and does not count. Sums are taken shard by shard and put together in the order of the
index, so that they do not depend on how many processes wrote; they are sums of distances to the first frame, so that a
constant feature has a standard deviation of exactly 0.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _none() -> NDArray[np.float64]:
    return np.zeros(0)


@dataclass
class Moments:
    """Frames of one modality that were seen; the arrays are [D], and empty before the first frame."""

    count: int = 0
    pivot: NDArray[np.float64] = field(default_factory=_none)
    """The first frame."""
    total: NDArray[np.float64] = field(default_factory=_none)
    """Sum of the distances to the pivot."""
    squares: NDArray[np.float64] = field(default_factory=_none)
    """Sum of their squares."""

    def add(self, frames: NDArray[Any]) -> None:
        """Take in one sample [T, D]."""
        held = frames[frames.any(axis=1)].astype(np.float64)
        if len(held):
            pivot = self.pivot if self.count else held[0]
            shifted = held - pivot
            part = Moments(len(held), pivot, np.add.reduce(shifted, axis=0), np.add.reduce(shifted * shifted, axis=0))
            self.merge(part)

    def merge(self, other: "Moments") -> None:
        """Take in what another has seen."""
        if self.count and other.count:
            shift = other.pivot - self.pivot
            self.squares = self.squares + other.squares + shift * (2 * other.total + other.count * shift)
            self.total = self.total + other.total + other.count * shift
            self.count += other.count
        elif other.count:
            self.count, self.pivot, self.total, self.squares = other.count, other.pivot, other.total, other.squares

    def describe(self, dim: int) -> dict[str, list[float]]:
        """`mean` and `std` of each of `dim` features; zeros where no frame was seen."""
        if not self.count:
            return {"mean": [0.0] * dim, "std": [0.0] * dim}
        offset = self.total / self.count
        variance = np.maximum(self.squares / self.count - offset * offset, 0)
        return {"mean": (self.pivot + offset).tolist(), "std": np.sqrt(variance).tolist()}


def merge_all(held: dict[str, Moments], more: dict[str, Moments]) -> None:
    """Take `more`, by modality, into `held`."""
    for modality, moments in more.items():
        held.setdefault(modality, Moments()).merge(moments)


def describe_all(moments: dict[str, Moments], dims: dict[str, int]) -> dict[str, dict[str, list[float]]]:
    """Statistics by modality, for the index; {} for a set without a train split."""
    return {modality: found.describe(dims[modality]) for modality, found in sorted(moments.items())}
