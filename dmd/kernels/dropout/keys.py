"""The keys of a pass's dropouts: 64 bits for each call site and sample, all of them by six operations on the CPU.

Keys of a step are members of the Weyl sequence `seed + n * GAMMA` modulo 2^64, mixed (as in SplitMix64: Steele, Lea,
Flood 2014), where n holds call site, encoder, ghost batch and place in it, in bits of their own. The mix is degski's: x
^= x >>> 32 and products by an odd constant, which are bijections, so no two keys of a step are equal; a flip of any bit
of n flips each bit of a key with probability 1/2. A shift by half a word is one operation on the halves.

A pass copies one table to its device: 8 bytes a call site and sample, 94 KiB at MOSI's 160 samples. Computed there, it
would cost six launches.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

GAMMA = 0x9E3779B97F4A7C15
"""Step of the Weyl sequence: 2^64 over the golden ratio."""
MULTIPLIER = 0xD6E8FEB86659FD93 - 2**64
"""Of the mix, as int64."""
PLACE_BITS, GHOST_BITS, ENCODER_BITS, SITE_BITS = 16, 24, 10, 14
"""Of n, from the low end: places, ghost batches, encoders (0 where there is one mask for all) and call sites."""
SECOND_PASS = 1 << GHOST_BITS - 1
"""What is added to the numbers of ghost batches where the same samples go through the network again."""


class KeySource(Protocol):
    """What keys of a pass are computed from; `dmd.kernels.dropout.rng.DropoutRNG` is one."""

    @property
    def states(self) -> Tensor:
        """What `sample_states` gives for the samples of the pass, [B] int64, on the CPU."""

    @property
    def device(self) -> torch.device:
        """Where the pass runs."""


def number_samples(ghosts: Sequence[int], places: Sequence[int]) -> Tensor:
    """The numbers of samples inside a step, [B] int64: the given places of each ghost batch, one after the other."""
    assert max(ghosts) < 2**GHOST_BITS, ghosts
    assert max(places) < 2**PLACE_BITS, places
    first = torch.tensor(ghosts, dtype=torch.int64) << PLACE_BITS
    return (first[:, None] + torch.tensor(places, dtype=torch.int64)).flatten()


def sample_states(seed: int, samples: Tensor) -> Tensor:
    """The part of `seed + n * GAMMA` that belongs to samples, [B] int64.

    Args:
        seed: of the step, 64 bits.
        samples: their numbers (`number_samples`).
    """
    return samples * _int64(GAMMA) + _int64(seed)


def site_states(call_sites: Sequence[tuple[int, ...]]) -> Tensor:
    """The part that belongs to call sites, each (number,) or (number, encoder): [call sites] int64."""
    return torch.tensor([_site_state(*call_site) for call_site in call_sites], dtype=torch.int64)


def _site_state(number: int, encoder: int = -1) -> int:
    assert number < 2**SITE_BITS
    assert encoder + 1 < 2**ENCODER_BITS
    return _int64((number << ENCODER_BITS | encoder + 1) * GAMMA << GHOST_BITS + PLACE_BITS)


def _int64(number: int) -> int:
    """A number modulo 2^64, as int64."""
    return (number + 2**63) % 2**64 - 2**63


def mix_keys(sites: Tensor, samples: Tensor) -> Tensor:
    """The keys [call sites, B, 2] int32, low word first, of states [call sites] and [B]."""
    state = sites[:, None] + samples
    keys = state.view(torch.int32).view(*state.shape, 2)
    low, high = keys.unbind(-1)
    for _ in range(2):
        low.bitwise_xor_(high)
        state.mul_(MULTIPLIER)
    low.bitwise_xor_(high)
    return keys


class DropoutKeys:
    """Keys of one pass after the other, always at the same address.

    The first pass tells which call sites ask for keys, and in which order; the table of a later one is there when it
    begins, copied from pinned memory without waiting. So a captured CUDA graph finds it too.
    """

    def __init__(self) -> None:
        self._call_sites: list[tuple[int, ...]] = []
        self._sites: Tensor | None = None
        self._states: Tensor | None = None
        self._device = torch.device("cpu")
        self._table: Tensor | None = None
        self._taken = self._starts = 0

    def start(self, source: KeySource) -> None:
        """Begin a pass: copy its table to the device."""
        self.restart()
        self._starts += 1
        self._states, self._device = source.states, source.device
        if self._call_sites and self._sites is None:
            self._sites = site_states(self._call_sites)
        if self._sites is not None:
            self._fill(mix_keys(self._sites, self._states))

    def _fill(self, keys: Tensor) -> None:
        if self._table is None or self._table.shape != keys.shape or self._table.device != self._device:
            self._table = torch.empty(keys.shape, dtype=keys.dtype, device=self._device)
        self._table.copy_(keys.pin_memory() if self._device.type == "cuda" else keys, non_blocking=True)

    def restart(self) -> None:
        """Give out the same keys again."""
        self._taken = 0

    @property
    def known(self) -> bool:
        """Whether an earlier pass has told the call sites, so that none asks the host for keys."""
        return self._starts > 1

    def take(self, call_sites: Sequence[tuple[int, ...]]) -> Tensor:
        """The keys [call sites, B, 2] of the next call sites of a pass."""
        assert self._states is not None, "no pass was started"
        first = self._taken
        self._taken += len(call_sites)
        if self._sites is None:
            assert first == len(self._call_sites)
            self._call_sites += call_sites
            return mix_keys(site_states(call_sites), self._states).to(self._device)
        assert self._call_sites[first : self._taken] == list(call_sites), "passes differ in their dropouts"
        assert self._table is not None
        return self._table[first : self._taken]
