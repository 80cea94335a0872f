"""The global order of an epoch: a pure function from position to sample, with constant memory per look-up.

Two keyed permutations: the shards of a split are permuted first; then the samples of each window of consecutive
(permuted) shards are permuted among themselves. So every sample comes exactly once, remote reads need at most
`window` shards at a time, and a position far into an epoch costs no more than the first. The permutations are
alternating Feistel networks on the fewest bits that hold the size, applied again to a result that is out of range
(cycle walking).

Nothing here knows ranks, workers or batches; readers compute those from positions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_shards.format.hashing import hash_key, mix

_ROUNDS = 10
_SHARDS = 1
"""Part of the key that permutes shards."""
_SAMPLES = 2
"""Part of the keys that permute the samples of a window."""
_ROUND_STEP = np.uint64(0x9E3779B97F4A7C15)
_SALTS = np.arange(1, _ROUNDS + 1, dtype=np.uint64) * _ROUND_STEP
_ONE = np.uint64(1)

_U64 = NDArray[np.uint64]


def epoch_order(
    positions: NDArray[np.integer], *, seed: int, epoch: int, num_samples: int, shard_size: int, window: int
) -> NDArray[np.int64]:
    """The samples at `positions` of an epoch.

    Args:
        positions: integers in [0, num_samples), any shape.
        seed: any integer; taken modulo 2^64.
        epoch: likewise.
        num_samples: size of the split, at least 1.
        shard_size: samples in every shard but the last; may be larger than the split.
        window: how many shards are mixed together; 1 stays inside one shard, the number of shards mixes all.

    Returns:
        int64 sample numbers in [0, num_samples), in the shape of `positions`. Over all positions each comes once.
    """
    geometry = _Geometry.of(seed=seed, epoch=epoch, num_samples=num_samples, shard_size=shard_size, window=window)
    wanted = _checked(positions, num_samples)
    flat = wanted.reshape(-1).astype(np.int64)
    shard_size, missing = geometry.shard_size, geometry.missing

    # Permute the samples of each window.
    numbers = geometry.windows(flat)
    starts, ends = geometry.bounds(numbers)
    keys = mix(numbers.astype(np.uint64) * _ROUND_STEP + np.uint64(hash_key(seed, epoch, _SAMPLES)))
    inside = _permute((flat - starts).astype(np.uint64), (ends - starts).astype(np.uint64), keys).astype(np.int64)

    # Find the shard and the sample in it; behind the short shard positions count as if it were full.
    short_end = (geometry.short_slot - geometry.short_window * geometry.window + 1) * shard_size - missing
    inside += np.where((numbers == geometry.short_window) & (inside >= short_end), missing, 0)
    slots = numbers * geometry.window + inside // shard_size
    shards = _permute(slots.astype(np.uint64), np.uint64(geometry.num_shards), np.uint64(geometry.shard_key))
    return (shards.astype(np.int64) * shard_size + inside % shard_size).reshape(wanted.shape)


def epoch_windows(
    positions: NDArray[np.integer], *, seed: int, epoch: int, num_samples: int, shard_size: int, window: int
) -> NDArray[np.int64]:
    """The windows of `positions` of an epoch, whose samples lie in the same `window` shards.

    Arguments as of `epoch_order`. Returns int64 numbers in the shape of `positions`; they count up with the positions.
    """
    geometry = _Geometry.of(seed=seed, epoch=epoch, num_samples=num_samples, shard_size=shard_size, window=window)
    return geometry.windows(_checked(positions, num_samples).astype(np.int64))


def _checked(positions: NDArray[np.integer], num_samples: int) -> NDArray[np.integer]:
    """The positions as an array. Raises ValueError for one outside an epoch."""
    wanted = np.asarray(positions)
    if wanted.size and (wanted.min() < 0 or wanted.max() >= num_samples):
        raise ValueError(f"a position is outside the {num_samples} samples of the epoch")
    return wanted


@dataclass(frozen=True)
class _Geometry:
    """How an epoch is cut into windows: the permuted shards lie end to end, one of them shorter than the others.

    Every window holds `window * shard_size` samples, but for the one with the short shard and the last one, which may
    hold fewer.
    """

    num_samples: int
    shard_size: int
    window: int
    num_shards: int
    missing: int
    """Samples that the last shard has less than the others."""
    shard_key: int
    short_slot: int
    """Place of the last shard among the permuted ones."""

    @classmethod
    def of(cls, *, seed: int, epoch: int, num_samples: int, shard_size: int, window: int) -> "_Geometry":
        for what, value in (("num_samples", num_samples), ("shard_size", shard_size), ("window", window)):
            if value < 1:
                raise ValueError(f"{what} is {value}; it must be at least 1")
        shard_size = min(shard_size, num_samples)
        num_shards = -(-num_samples // shard_size)
        key = hash_key(seed, epoch, _SHARDS)
        return cls(
            num_samples=num_samples,
            shard_size=shard_size,
            window=min(window, num_shards),
            num_shards=num_shards,
            missing=num_shards * shard_size - num_samples,
            shard_key=key,
            short_slot=_position_of(num_shards - 1, num_shards, key),
        )

    @property
    def short_window(self) -> int:
        """The window that holds the short shard."""
        return self.short_slot // self.window

    def windows(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the window of each position."""
        span = self.window * self.shard_size
        behind = positions >= (self.short_window + 1) * span - self.missing
        return (positions + np.where(behind, self.missing, 0)) // span

    def bounds(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first position of each window, and the one behind its last."""
        span = self.window * self.shard_size
        starts = numbers * span - np.where(numbers > self.short_window, self.missing, 0)
        ends = (numbers + 1) * span - np.where(numbers >= self.short_window, self.missing, 0)
        return starts, np.minimum(ends, self.num_samples)


def _permute(values: _U64, sizes: _U64 | np.uint64, keys: _U64 | np.uint64) -> _U64:
    """A keyed permutation of [0, size) applied to each value; sizes and keys may differ from value to value."""
    sizes, keys = np.broadcast_to(sizes, values.shape), np.broadcast_to(keys, values.shape)
    low, high = _half_widths(sizes)
    result = _feistel(values, low, high, keys)
    outside = np.flatnonzero(result >= sizes)
    while outside.size:
        again = _feistel(result[outside], low[outside], high[outside], keys[outside])
        result[outside] = again
        outside = outside[again >= sizes[outside]]
    return result


def _position_of(value: int, size: int, key: int) -> int:
    """The position that `_permute` over [0, size) maps to `value`: its inverse, for one value."""
    sizes, keys = np.array([size], dtype=np.uint64), np.array([key], dtype=np.uint64)
    low, high = _half_widths(sizes)
    result = _feistel(np.array([value], dtype=np.uint64), low, high, keys, inverse=True)
    while result[0] >= sizes[0]:
        result = _feistel(result, low, high, keys, inverse=True)
    return int(result[0])


def _half_widths(sizes: _U64) -> tuple[_U64, _U64]:
    """Numbers of low and high bits: together the fewest that can hold size - 1."""
    total = np.frexp((sizes - _ONE).astype(np.float64))[1].astype(np.uint64)
    low = total // np.uint64(2)
    return low, total - low


def _feistel(values: _U64, low: _U64, high: _U64, keys: _U64, *, inverse: bool = False) -> _U64:
    """A keyed permutation of [0, 2^(low + high)): each round changes one half by a hash of the other."""
    low_mask, high_mask = (_ONE << low) - _ONE, (_ONE << high) - _ONE
    right, left = values & low_mask, values >> low
    rounds = range(_ROUNDS)
    for number in reversed(rounds) if inverse else rounds:
        salt = keys + _SALTS[number]
        if number % 2:
            right = right ^ (mix(left ^ salt) & low_mask)
        else:
            left = left ^ (mix(right ^ salt) & high_mask)
    return (left << low) | right
