"""The keys of a pass's dropouts as one tensor in the device's memory.

Kernels and PyTorch on a GPU read them from there, so that a captured CUDA graph draws new masks at each replay, and
a pass copies them once, from pinned memory, without waiting.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class KeySource(Protocol):
    """What keys of a pass are computed from; `dmd.kernels.dropout.rng.DropoutRNG` is one."""

    @property
    def ghosts(self) -> tuple[int, ...]:
        """Numbers of the ghost batches inside the step."""

    @property
    def device(self) -> torch.device:
        """Where the pass runs."""

    def key(self, ghost: int, *call_site: int) -> tuple[int, int]:
        """Two int32 for one ghost batch (by its place in the batch) at one call site."""


def key_table(source: KeySource, call_sites: Sequence[tuple[int, ...]]) -> Tensor:
    """The keys [call sites, ghosts, 2] of a pass, int32, on the CPU."""
    words = [[source.key(ghost, *call_site) for ghost in range(len(source.ghosts))] for call_site in call_sites]
    return torch.tensor(words, dtype=torch.int32).view(len(call_sites), len(source.ghosts), 2)


class DropoutKeys:
    """Keys of one pass after the other, always at the same address.

    The first pass tells which call sites ask for keys, and in which order; later ones find the table filled.
    """

    def __init__(self) -> None:
        self._call_sites: list[tuple[int, ...]] = []
        self._table: Tensor | None = None
        self._taken = self._starts = 0

    def start(self, source: KeySource) -> None:
        """Begin a pass: copy its keys to the device, if an earlier pass has told the call sites."""
        self.restart()
        self._starts += 1
        if not self._call_sites:
            return
        keys = key_table(source, self._call_sites)
        if self._table is None or self._table.shape != keys.shape or self._table.device != source.device:
            self._table = torch.empty(keys.shape, dtype=keys.dtype, device=source.device)
        if source.device.type == "cuda":
            keys = keys.pin_memory()
        self._table.copy_(keys, non_blocking=True)

    def restart(self) -> None:
        """Give out the same keys again."""
        self._taken = 0

    @property
    def known(self) -> bool:
        """Whether an earlier pass has told the call sites, so that none asks the host for keys."""
        return self._starts > 1

    def take(self, source: KeySource, call_sites: Sequence[tuple[int, ...]]) -> Tensor:
        """The keys [call sites, ghosts, 2] of the next call sites of a pass."""
        first = self._taken
        self._taken += len(call_sites)
        if self._table is None:
            assert first == len(self._call_sites)
            self._call_sites += call_sites
            return key_table(source, call_sites).to(source.device)
        assert self._call_sites[first : self._taken] == list(call_sites), "passes differ in their dropouts"
        return self._table[first : self._taken]
