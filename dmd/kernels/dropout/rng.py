"""Dropout masks of a sample that depend on (seed, step, ghost batch, place in it, place in the network) alone.

A mask does not depend on the rank that draws it nor on which samples run at once, so a training is the same function of
its seed on any number of ranks; and any element of it can be computed again anywhere, so that backward need not keep it
and every backend drops the same elements.

Elements are numbered inside their sample. Element 2w + p of a mask looks at sixteen bits (low ones for p = 0) of
`hash_words(w)`; rates are held to 1/65536. On a CPU this is ten times as fast as `bernoulli_`. The hash is C. Wellons'
`lowbias32`, with the key in two places.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.kernels.dropout.keys import DropoutKeys, mix_keys, sample_states, site_states

CACHED_WORDS = 2**17
"""Words that a CPU draws at once, 512 KiB: they stay in its cache."""
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
    """The dropout RNG of one forward pass.

    Args:
        seed: seed of the run.
        step: optimizer step.
        samples: numbers of the pass's samples inside the step, [B], on the CPU, as `keys.number_samples` gives them.
            They may be any part of a ghost batch: another rank that holds the rest draws the masks of the rest.
        device: where masks are drawn.
        keys: the pass's keys in the device's memory; None: they are computed call site by call site.
    """

    def __init__(
        self,
        *,
        seed: int,
        step: int,
        samples: Tensor,
        device: torch.device,
        keys: DropoutKeys | None = None,
    ) -> None:
        self.device = device
        self.states = sample_states(derived_seed("dropout", seed, step), samples)
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

    def table(self, call_sites: Sequence[tuple[int, ...]]) -> Tensor:
        """The keys [call sites, B, 2], int32, on the device; a call site is its number, or that and an encoder."""
        if self.keys is not None:
            return self.keys.take(call_sites)
        return mix_keys(site_states(call_sites), self.states).to(self.device)

    def scaled_keep_mask(self, shape: Sequence[int], rate: float, *, batch_dim: int, dtype: torch.dtype) -> Tensor:
        """A mask of `shape` with 0 (probability `rate`) or 1 / (1 - rate); `batch_dim` counts the samples.

        Of a sample, each index of the axes before `batch_dim` begins a new word.
        """
        assert shape[batch_dim] == len(self.states), (shape, batch_dim)
        masks = self.next_masks(rate, math.prod(shape[batch_dim + 1 :]))
        return masks.draw(range(math.prod(shape[:batch_dim])), slice(0, shape[batch_dim]), dtype).view(*shape)

    def next_masks(self, rate: float, inner: int) -> "SampleMasks":
        """The masks of the next place in the network, of which a sample has some of `inner` elements each."""
        return SampleMasks(keys=self.table([(self.next_call_site(),)])[0], rate=rate, inner=inner)


@dataclass(frozen=True, kw_only=True)
class SampleMasks:
    """Masks [outer, B, inner] of one call site, of which any part can be drawn at any time."""

    keys: Tensor
    """[B, 2] int32."""
    rate: float
    inner: int
    """Elements of a sample for each outer index, which begins a new word."""

    def draw(self, outer: range, samples: slice, dtype: torch.dtype) -> Tensor:
        """0 (probability `rate`) or 1 / (1 - rate), for some outer indices and samples: [outer, b, inner]."""
        low, high = self.keys[samples].unsqueeze(1).unbind(-1)  # [b, 1]
        width = (self.inner + 1) // 2
        device = self.keys.device
        words = torch.arange(outer.start * width, outer.stop * width, dtype=torch.int32, device=device)
        words = words.view(len(outer), 1, width)
        mask = torch.empty(len(outer), len(low), self.inner, dtype=dtype, device=device)
        at_once = max(1, CACHED_WORDS // max(1, words.numel())) if device.type == "cpu" else len(low)
        for begin in range(0, len(low), at_once):
            part = slice(begin, begin + at_once)
            keep_mask = draw_keep_mask(words, self.rate, (low[part], high[part]))  # [outer, b, 2 * width]
            mask[:, part].copy_(keep_mask[..., : self.inner]).mul_(keep_scale(self.rate))
        return mask


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
