"""Dropout masks that depend on (seed, step, ghost batch, place in the network) alone.

A mask does not depend on the rank that draws it nor on how many ghost batches run at once, so a training is the same
function of its seed on any number of ranks; and any element of it can be computed again anywhere, so that backward need
not keep it and every backend drops the same elements.

Element 2w + p of a mask looks at sixteen bits (low ones for p = 0) of `hash_words(w)`; rates are held to 1/65536. On a
CPU this is ten times as fast as `bernoulli_`. The hash is C. Wellons' `lowbias32`, with the key in two places.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from dmd.kernels.dropout.keys import DropoutKeys, key_table

_BITS = 16


_ROUNDS = ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32))
"""Shift and multiplier (int32) of the first two rounds of the hash."""
_LAST_SHIFT = 16
Key = tuple[int, int] | tuple[Tensor, Tensor]
"""Two int32 numbers; tensors of them are broadcast against the word numbers."""


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from any key, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class DropoutRNG:
    """The dropout RNG of one forward pass over ghost batches.

    Args:
        seed: seed of the run.
        step: optimizer step.
        ghosts: numbers of the ghost batches inside the step, in the order in which they lie in the batch.
        ghost_size: samples in each.
        device: where masks are drawn.
        keys: the pass's keys in the device's memory; None: they come from the host, call site by call site.
    """

    def __init__(
        self,
        *,
        seed: int,
        step: int,
        ghosts: Sequence[int],
        ghost_size: int,
        device: torch.device,
        keys: DropoutKeys | None = None,
    ) -> None:
        self.seed, self.step, self.ghosts, self.ghost_size, self.device = seed, step, tuple(ghosts), ghost_size, device
        self.keys = keys
        self._call_sites = 0
        if keys is not None:
            keys.start(self)

    def restart(self) -> None:
        """Begin the same pass again."""
        self._call_sites = 0
        if self.keys is not None:
            self.keys.restart()

    def next_call_site(self) -> int:
        """Number of the next place in the network that drops something: calls come in the same order in every pass."""
        self._call_sites += 1
        return self._call_sites

    def key(self, ghost: int, *call_site: int) -> tuple[int, int]:
        """The hash key, two int32, of one ghost batch (by its place in the batch) at one call site."""
        seed = derived_seed("noise", self.seed, self.step, self.ghosts[ghost], *call_site)
        return _signed(seed & 0xFFFFFFFF), _signed(seed >> 32)

    def table(self, call_sites: Sequence[tuple[int, ...]]) -> Tensor:
        """The keys [call sites, ghosts, 2], int32, on the device."""
        return key_table(self, call_sites).to(self.device) if self.keys is None else self.keys.take(self, call_sites)

    def scaled_keep_mask(self, shape: Sequence[int], rate: float, *, batch_dim: int, dtype: torch.dtype) -> Tensor:
        """A mask of `shape` with 0 (probability `rate`) or 1 / (1 - rate); `batch_dim` counts the samples."""
        assert shape[batch_dim] == len(self.ghosts) * self.ghost_size, (shape, batch_dim)
        part = list(shape)
        part[batch_dim] = self.ghost_size
        count = torch.Size(part).numel()
        words = torch.arange((count + 1) // 2, dtype=torch.int32, device=self.device)
        mask = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        keys = self.table([(self.next_call_site(),)])[0]  # [ghosts, 2]
        at_once = 1 if self.device.type == "cpu" else len(keys)  # a CPU's cache holds one ghost batch's words
        for begin in range(0, len(keys), at_once):
            low, high = keys[begin : begin + at_once].unsqueeze(-1).unbind(1)  # [g, 1]
            keep_mask = draw_keep_mask(words, rate, (low, high))[:, :count]  # [g, count]
            target = mask.narrow(batch_dim, begin * self.ghost_size, len(low) * self.ghost_size)
            target.unflatten(batch_dim, (len(low), -1)).copy_(keep_mask.unflatten(1, part).movedim(0, batch_dim))
        return mask.mul_(keep_scale(rate))


def hash_words(words: Tensor, key: Key) -> Tensor:
    """32 random bits for each int32 word number."""
    x = words + key[0]
    shifted = torch.empty_like(x)
    for shift, multiplier in _ROUNDS:
        _xor_shift(x, shift, shifted).mul_(multiplier).bitwise_xor_(key[1])
    return _xor_shift(x, _LAST_SHIFT, shifted)


def _xor_shift(x: Tensor, shift: int, buffer: Tensor) -> Tensor:
    """x ^= x >>> shift, in place. The sign that an arithmetic shift of int32 brings in is masked out."""
    torch.bitwise_right_shift(x, shift, out=buffer)
    return x.bitwise_xor_(buffer.bitwise_and_((1 << (32 - shift)) - 1))


def draw_keep_mask(words: Tensor, rate: float, key: Key) -> Tensor:
    """1 where an element is kept, 0 where it is dropped, int16: words [..., W] -> [..., 2 W]."""
    return hash_words(words, key).view(torch.int16).ge_(threshold(rate) - 2 ** (_BITS - 1))


def threshold(rate: float) -> int:
    """The rate in 1/65536."""
    return round(rate * 2**_BITS)


def keep_scale(rate: float) -> float:
    """What the kept elements are multiplied by: 1 / (1 - rate), with the rate that is drawn."""
    return 2**_BITS / (2**_BITS - threshold(rate))


def _signed(word: int) -> int:
    """An unsigned 32-bit number as int32."""
    return word - 2**32 if word >= 2**31 else word
