"""The keys of a pass's dropouts as one tensor in the device's memory.

Kernels and plain torch on a GPU read them from there, so that a captured CUDA graph draws new masks at each replay, and
a pass copies them once, from pinned memory, without waiting.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dmd.kernels.noise import Noise


def key_table(noise: "Noise", sites: Sequence[tuple[int, ...]]) -> Tensor:
    """The keys [sites, ghosts, 2] of a pass, int32, on the CPU."""
    words = [[noise.key(ghost, *site) for ghost in range(len(noise.ghosts))] for site in sites]
    return torch.tensor(words, dtype=torch.int32).view(len(sites), len(noise.ghosts), 2)


class DropoutKeys:
    """Keys of one pass after the other, always at the same address.

    The first pass tells which sites ask for keys, and in which order; later ones find the table filled.

    Args:
        fused: dropouts on their own, outside the encoders, are Triton kernels too.
    """

    def __init__(self, *, fused: bool = True) -> None:
        self.fused = fused
        self._sites: list[tuple[int, ...]] = []
        self._table: Tensor | None = None
        self._taken = self._starts = 0

    def start(self, noise: "Noise") -> None:
        """Begin a pass: copy its keys to the device, if an earlier pass has told the sites."""
        self.restart()
        self._starts += 1
        if not self._sites:
            return
        keys = key_table(noise, self._sites)
        if self._table is None or self._table.shape != keys.shape or self._table.device != noise.device:
            self._table = torch.empty(keys.shape, dtype=keys.dtype, device=noise.device)
        if noise.device.type == "cuda":
            keys = keys.pin_memory()
        self._table.copy_(keys, non_blocking=True)

    def restart(self) -> None:
        """Give out the same keys again."""
        self._taken = 0

    @property
    def known(self) -> bool:
        """Whether an earlier pass has told the sites, so that none asks the host for keys."""
        return self._starts > 1

    def take(self, noise: "Noise", sites: Sequence[tuple[int, ...]]) -> Tensor:
        """The keys [sites, ghosts, 2] of the next sites of a pass."""
        first = self._taken
        self._taken += len(sites)
        if self._table is None:
            assert first == len(self._sites)
            self._sites += sites
            return key_table(noise, sites).to(noise.device)
        assert self._sites[first : self._taken] == list(sites), "passes differ in their dropouts"
        return self._table[first : self._taken]
