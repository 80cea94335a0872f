"""A keyed 64-bit hash in vectorised numpy: the only randomness in `data_shards`, so none depends on numpy's Generator.

The mixer is splitmix64's finaliser, a bijection of 64-bit words.
"""

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def hash_key(*parts: int) -> int:
    """One 64-bit key from integers (each taken modulo 2^64); their order matters."""
    state = 0
    for part in parts:
        state = _mix_int((state ^ (part & _MASK)) + _GAMMA & _MASK)
    return state


def mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words, elementwise."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    words = (words ^ (words >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return words ^ (words >> np.uint64(31))


def uniform(key: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) with 53 random bits; number `i` depends on `key` and `i` only."""
    words = mix(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(key))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(key: int, count: int) -> NDArray[np.float64]:
    """`count` nearly normal numbers (sum of four uniforms, variance 1); additions only, so equal on every machine."""
    parts = uniform(key, 4 * count)
    total = parts[:count] + parts[count : 2 * count] + parts[2 * count : 3 * count] + parts[3 * count :]
    return (total - 2.0) * np.sqrt(3.0)


def _mix_int(word: int) -> int:
    word = (word ^ (word >> 30)) * _MULTIPLIERS[0] & _MASK
    word = (word ^ (word >> 27)) * _MULTIPLIERS[1] & _MASK
    return word ^ (word >> 31)
