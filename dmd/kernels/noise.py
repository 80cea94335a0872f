"""Dropout masks that depend on (seed, step, ghost batch, place in the network) alone.

A mask does not depend on the rank that draws it nor on how many ghost batches run at once, so a training is the same
function of its seed on any number of ranks; and it can be drawn again, so that backward need not keep it. Rates are
held to 1/65536: sixteen random bits decide about an element, four elements from each 64-bit draw (nine times as fast
as `bernoulli_` on a CPU).
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_BITS = 16


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
        self.seed, self.step, self.ghosts, self.ghost_size, self.device = seed, step, tuple(ghosts), ghost_size, device
        self._sites = 0

    def next_site(self) -> int:
        """Number of the next place in the network that drops something: calls come in the same order in every pass."""
        self._sites += 1
        return self._sites

    def generator(self, ghost: int, *site: int) -> torch.Generator:
        """The generator of one ghost batch (by its place in the batch) at one site, always from its beginning."""
        generator = torch.Generator(device=self.device)
        return generator.manual_seed(derived_seed("noise", self.seed, self.step, self.ghosts[ghost], *site))

    def keep(self, shape: Sequence[int], rate: float, *, batch_dim: int, dtype: torch.dtype) -> Tensor:
        """A mask of `shape` with 0 (probability `rate`) or 1 / (1 - rate); `batch_dim` counts the samples."""
        assert shape[batch_dim] == len(self.ghosts) * self.ghost_size, (shape, batch_dim)
        site = self.next_site()
        part = list(shape)
        part[batch_dim] = self.ghost_size
        count = torch.Size(part).numel()
        mask = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        for ghost in range(len(self.ghosts)):
            dropped = draw_dropped(count, rate, self.generator(ghost, site)).view(part)
            mask.narrow(batch_dim, ghost * self.ghost_size, self.ghost_size).copy_(~dropped)
        return mask.mul_(keep_scale(rate))


def draw_dropped(count: int, rate: float, generator: torch.Generator) -> Tensor:
    """Bool [count], true with probability `rate`."""
    bits = torch.empty((count + 3) // 4, dtype=torch.int64, device=generator.device)
    bits.random_(-(2**63), None, generator=generator)
    return bits.view(torch.int16)[:count] < round(rate * 2**_BITS) - 2 ** (_BITS - 1)


def keep_scale(rate: float) -> float:
    """What the kept elements are multiplied by: 1 / (1 - rate), with the rate that is drawn."""
    return 2**_BITS / (2**_BITS - round(rate * 2**_BITS))


def dropout(x: Tensor, rate: float, noise: Noise | None, *, batch_dim: int = 0) -> Tensor:
    """Dropout of `x`; the identity where `noise` is None (evaluation) or the rate is 0."""
    if noise is None or rate == 0:
        return x
    return x * noise.keep(x.shape, rate, batch_dim=batch_dim, dtype=x.dtype)
