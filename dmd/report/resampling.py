"""Resamples of the samples of a split, as matrices whose product with the samples' moments is a metric's means."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 22
"""Numbers of a block of resamples."""


def bootstrap_counts(samples: int, resamples: int, *, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each resample has each of N samples, drawn with replacement: blocks [R, N], `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    for rows in _blocks(samples, resamples):
        drawn = generator.integers(samples, size=(rows, samples)) + samples * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * samples).reshape(rows, samples).astype(np.float64)


def is_exact(samples: int, resamples: int) -> bool:
    """Whether all 2^N swaps of N samples are no more than `resamples`, so that `swaps` gives each of them once."""
    return samples < resamples.bit_length() and 1 << samples <= resamples


def swaps(samples: int, resamples: int, *, seed: int) -> Iterator[NDArray[np.float64]]:
    """Which of N samples a permutation swaps between two models, 0 or 1: blocks [R, N]; all 2^N where `is_exact`, else
    `resamples` random ones."""
    if is_exact(samples, resamples):
        yield (np.arange(1 << samples)[:, None] >> np.arange(samples) & 1).astype(np.float64)
        return
    generator = np.random.default_rng(seed)
    for rows in _blocks(samples, resamples):
        yield generator.integers(2, size=(rows, samples), dtype=np.int8).astype(np.float64)


def seed_weights(seeds: int, resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """The share of each of n seeds, drawn with replacement, in each resample: [resamples, n]."""
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds


def _blocks(samples: int, resamples: int) -> Iterator[int]:
    """Rows of each block."""
    most = max(1, _AT_ONCE // samples)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)
