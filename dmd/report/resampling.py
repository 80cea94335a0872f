"""Resamples of the units of a split, samples or whole videos, as matrices whose product with the units' moments is a
metric's means."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 1 << 22
"""Numbers of a block of resamples, or of its product."""


def bootstrap_counts(units: int, resamples: int, *, columns: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each resample has each of U units, drawn with replacement: blocks [R, U], `resamples` rows in all.

    Args:
        columns: of the matrix that a block is multiplied with; a block has fewer rows the more there are.
    """
    generator = np.random.default_rng(seed)
    for rows in _blocks(max(units, columns), resamples):
        drawn = generator.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def is_exact(units: int, resamples: int) -> bool:
    """Whether all 2^U swaps of U units are no more than `resamples`, so that `swaps` gives each of them once."""
    return units < resamples.bit_length() and 1 << units <= resamples


def swaps(units: int, resamples: int, *, columns: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Which of U units a permutation swaps between two models, 0 or 1: blocks [R, U]; all 2^U where `is_exact`, else
    `resamples` random ones. `columns` as in `bootstrap_counts`."""
    exact = is_exact(units, resamples)
    generator, start = np.random.default_rng(seed), 0
    for rows in _blocks(max(units, columns), 1 << units if exact else resamples):
        if exact:
            yield (np.arange(start, start + rows)[:, None] >> np.arange(units) & 1).astype(np.float64)
        else:
            yield generator.integers(2, size=(rows, units), dtype=np.int8).astype(np.float64)
        start += rows


def seed_weights(seeds: int, resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """The share of each of n seeds, drawn with replacement, in each resample: [resamples, n]."""
    return generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds


def _blocks(width: int, resamples: int) -> Iterator[int]:
    """Rows of each block."""
    most = max(1, _AT_ONCE // width)
    for start in range(0, resamples, most):
        yield min(most, resamples - start)
