"""Attention of some samples of one encoder in PyTorch, forward and backward, made for CPUs.

It works through blocks of the attention matrices that fit the cache, and skips the keys that no query of a block sees.
Backward computes each block again from query and key, as FlashAttention does (Dao et al. 2022, appendix B). Of one head
of one sample, with queries q [Tq, h], keys k and values v [Tk, h], keep mask D and scale c of dropout:

    s = q k^T                       scores of base 2, -inf where a key is hidden from a query
    p = 2^(s - top)                 `top` holds the largest score of each row, or 0 where no exponential can overflow
    z = row sums of p
    out = c / z * ((D * p) v)       softmax, dropout and product; the weights themselves are never divided

Backward, from the gradient G of `out` (a product of equal shapes is by element, a row's number spreads over its row):

    g = c / z * G
    dv = (D * p)^T g
    m = 1 / c * row sums of (g * out)           which is each row's mean of D * (g v^T), weighted by p / z
    ds = ln 2 * (D * p * (g v^T) - p * m)       gradient of softmax
    dq = ds k
    dk = ds^T q

The keep masks D of short sequences are held from forward to backward, a byte a weight, since to draw one again is some
fifteen small operations a block. Those of long sequences are drawn again: they would fill the memory that blocks save.

The base is 2 because `exp2` takes a fifth of the time of `exp` where scores are -inf: 5 % of a training step.

Heads lie with time last, as a projection gives them whose rows are sorted by channel and then by head: [h, M, T], for
M = H * b matrices, of which matrix `head * b + sample` is one head of one sample. So nothing is copied to split or to
join heads, and any run of matrices is one batched product.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.rng import DropoutRNG, draw_keep_mask, keep_scale

BLOCK_ELEMENTS = 2**19
"""Attention weights of one block: 2 MB in float32."""
LONG = 64
"""Sequences of more steps are long: their blocks have more rows, and their keep masks are not held for backward."""
BLOCK_ROWS, LONG_BLOCK_ROWS = 16, 64
"""Query rows of one block, and of one of a long sequence."""
SAFE_SCORE = 60.0
"""Scores (of base 2) that no exponential over- or underflows at, so that a row's largest need not be subtracted."""


LN_2 = math.log(2)


class Heads(NamedTuple):
    """Queries, keys and values of all heads, or their gradients."""

    query: Tensor
    """[h, M, Tq], already multiplied by `query_scale`."""
    key_value: Tensor
    """[2, h, M, Tk]: keys, values."""

    def matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [M, h, Tq], keys and values [M, h, Tk]: views, each a batch of matrices."""
        key, value = self.key_value.transpose(1, 2)
        return self.query.transpose(0, 1), key, value


class CpuAttended(NamedTuple):
    """What attention gives and its backward pass needs."""

    mixed: Tensor
    """`out`: values mixed by the attention weights, [h, M, Tq]."""
    inverse: Tensor
    """c / z of each query row, [M, Tq]; 0 in a row that sees no key."""
    top: Tensor | None
    """What was subtracted from the scores of each query row, [M, Tq]; None: nothing."""
    keep_masks: Tensor | None
    """1 where a weight was kept, 0 where it was dropped, uint8: [weights of all blocks], at the `places` of each block.

    None: no dropout, a long sequence, or no backward pass that can follow. Bytes: M * Tq * Tk at most, less where the
    causal mask hides a key from all rows of a block. 160 samples of MOSI aligned (M = 1600, 46 steps) hold 2.15 MiB an
    encoder and layer.
    """


class Block(NamedTuple):
    """A part of the attention matrices."""

    rows: slice
    """Query rows, counted from the first that is computed."""
    keys: int
    """Keys, from the first on, of which the last query row sees each."""
    matrices: slice
    places: slice
    """Of its weights among those of all blocks, one block after the other."""

    def of(self, masks: Tensor) -> Tensor:
        """Its part of the weights of all blocks [weights], as [m, rows, keys]: a view."""
        return masks[self.places].view(-1, self.rows.stop - self.rows.start, self.keys)


@dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """One call of the attention of E encoders."""

    plan: AttentionPlan
    keys: Tensor | None
    """Dropout keys of each encoder and sample, [E, B, 2]; None: no dropout."""
    key_ranges: Tensor | None
    """See `Backend.attention`."""

    @classmethod
    def begin(cls, plan: AttentionPlan, rng: DropoutRNG | None, key_ranges: Tensor | None) -> "AttentionCall":
        """The next call of a pass, with the dropout that is due."""
        call_site = plan.next_call_site(rng)
        keys = None
        if rng is not None and call_site is not None:
            keys = rng.table([(call_site, encoder) for encoder in range(len(plan.queries))])
        return cls(plan=plan, keys=keys, key_ranges=key_ranges)

    def of(self, encoder: int, samples: slice) -> "BlockAttention":
        """The part of some samples of one encoder."""
        return BlockAttention(self, encoder, samples)


class BlockAttention:
    """Attention of some samples of one encoder: `forward`, and then `backward` with the same dropout."""

    def __init__(self, call: AttentionCall, encoder: int, samples: slice) -> None:
        plan = call.plan
        self.heads = plan.heads
        self.first_row, self.end_row = plan.rows(encoder)
        self.keys = plan.keys[encoder]
        self.offset = abs(plan.queries[encoder] - plan.keys[encoder])
        self.long = max(plan.queries[encoder], plan.keys[encoder]) > LONG
        self.key_ranges = None if call.key_ranges is None else call.key_ranges[encoder, samples]  # [b, 2]
        self.dropout = None
        if call.keys is not None and plan.rates[encoder] > 0:
            self.dropout = WeightDropout(call, encoder, samples)

    def forward(self, heads: Heads, *, for_backward: bool) -> CpuAttended:
        """Mix the values. Rows past the encoder's length are zero.

        Args:
            for_backward: hold the keep masks that `backward` would otherwise draw again.
        """
        mixed = self._of_rows(heads.query)
        sums = self._of_rows(mixed[0])
        top = None if _bounded(heads) else self._of_rows(sums)
        query, key, value = heads.matrices()
        out = mixed.transpose(0, 1)  # [M, h, Tq]
        blocks = list(self._blocks(len(query)))
        keep_masks = None
        if for_backward and self.dropout is not None and not self.long:
            keep_masks = torch.empty(blocks[-1].places.stop, dtype=torch.uint8)
        for block in blocks:
            rows, keys, matrices, _ = block
            weights = self._scores(block, query, key)
            if top is not None:
                largest = weights.amax(-1).clamp_(min=torch.finfo(weights.dtype).min)  # -inf in a row without a key
                top[matrices, rows] = largest
                weights.sub_(largest.unsqueeze(-1))
            sums[matrices, rows] = weights.exp2_().sum(-1)
            if self.dropout is not None:
                keep_mask = self.dropout.keep_mask(block)
                if keep_masks is not None:
                    keep_mask = block.of(keep_masks).copy_(keep_mask)
                weights *= keep_mask.to(weights.dtype)
            out[matrices, :, rows] = torch.bmm(value[matrices, :, :keys], weights.transpose(1, 2))
        inverse = self._keep_scale() / sums.masked_fill_(sums == 0, math.inf)
        return CpuAttended(mixed.mul_(inverse), inverse, top, keep_masks)

    def backward(self, heads: Heads, attended: CpuAttended, grad: Tensor) -> Heads:
        """The gradients of the heads, from that of the mixed values. It changes nothing of what forward gave."""
        mixed, inverse, top, keep_masks = attended
        grads = Heads(self._of_rows(heads.query), torch.empty_like(heads.key_value))
        grads.key_value[..., self.keys :] = 0
        grad = grad * inverse
        mean = (grad * mixed).sum(0).div_(self._keep_scale())  # [M, Tq]
        query, key, value = heads.matrices()
        grad_query, grad_key, grad_value = grads.matrices()
        upstream = grad.transpose(0, 1)  # [M, h, Tq]
        for block in self._blocks(len(query)):
            rows, keys, matrices, _ = block
            weights = self._scores(block, query, key)
            if top is not None:
                weights.sub_(top[matrices, rows].unsqueeze(-1))
            weights.exp2_()
            grad_out = upstream[matrices, :, rows]
            grad_scores = torch.bmm(grad_out.transpose(1, 2), value[matrices, :, :keys])
            kept = weights
            if self.dropout is not None:
                keep_mask = self.dropout.keep_mask(block) if keep_masks is None else block.of(keep_masks)
                kept = keep_mask.to(weights.dtype).mul_(weights)
            grad_scores.mul_(kept).addcmul_(weights, mean[matrices, rows].unsqueeze(-1), value=-1)
            grad_query[matrices, :, rows] = torch.bmm(key[matrices, :, :keys], grad_scores.transpose(1, 2))
            key_part, value_part = torch.bmm(query[matrices, :, rows], grad_scores), torch.bmm(grad_out, kept)
            if rows.stop == self.end_row - self.first_row:  # the last rows, which come first and see every key
                grad_key[matrices, :, :keys], grad_value[matrices, :, :keys] = key_part, value_part
            else:
                grad_key[matrices, :, :keys] += key_part
                grad_value[matrices, :, :keys] += value_part
        grad_query.mul_(LN_2)
        grad_key.mul_(LN_2)
        return grads

    def _blocks(self, matrices: int) -> Iterator[Block]:
        """The blocks that hold every key that a query sees, from the last rows to the first."""
        size = LONG_BLOCK_ROWS if self.long else BLOCK_ROWS
        place = 0
        for begin in reversed(range(self.first_row, self.end_row, size)):
            end = min(begin + size, self.end_row)
            keys = min(self.keys, end + self.offset)  # what row end - 1 sees
            at_once = max(1, BLOCK_ELEMENTS // ((end - begin) * keys))
            for first in range(0, matrices, at_once):
                rows = slice(begin - self.first_row, end - self.first_row)
                part = slice(first, min(first + at_once, matrices))
                places = slice(place, place + (part.stop - first) * (end - begin) * keys)
                yield Block(rows, keys, part, places)
                place = places.stop

    def _of_rows(self, like: Tensor) -> Tensor:
        """A new tensor [..., Tq] of which the blocks write the encoder's rows; zero in the rows past its length."""
        new = torch.empty_like(like)
        new[..., self.end_row - self.first_row :] = 0
        return new

    def _scores(self, block: Block, query: Tensor, key: Tensor) -> Tensor:
        """The scores of a block [m, rows, keys], -inf where a key is hidden."""
        rows, keys, matrices, _ = block
        seen = self.first_row + rows.start + self.offset + 1  # keys that the first row sees
        hidden = _causal_mask(rows.stop - rows.start, keys, seen, query.dtype)
        # Of small matrices, `baddbmm` is faster than `bmm` where nothing is hidden, too.
        scores = torch.baddbmm(hidden, query[matrices, :, rows].transpose(1, 2), key[matrices, :, :keys])
        if self.key_ranges is not None:
            ranges = self.key_ranges.repeat(self.heads, 1)[matrices]  # [m, 2]
            begin, end = ranges[:, None, None].unbind(-1)  # [m, 1, 1]
            column = torch.arange(keys)
            scores.masked_fill_((column < begin) | (column >= end), -math.inf)
        return scores

    def _keep_scale(self) -> float:
        return 1.0 if self.dropout is None else self.dropout.scale


class WeightDropout:
    """Keep masks of the attention weights of some samples of one encoder, the same in forward and backward.

    Weights of a sample are numbered over its heads, query rows and keys; a row begins a new word.
    """

    def __init__(self, call: AttentionCall, encoder: int, samples: slice) -> None:
        assert call.keys is not None
        plan = call.plan
        self.rate = plan.rates[encoder]
        self.scale = keep_scale(self.rate)
        self.first_row, _ = plan.rows(encoder)
        self.words_of_row = (plan.keys[encoder] + 1) // 2
        low, high = call.keys[encoder, samples].unbind(-1)  # [b]
        head = torch.arange(plan.heads, dtype=torch.int32).unsqueeze(1)  # [H, 1]
        first_word = head * (plan.queries[encoder] * self.words_of_row)
        self.first_word = (first_word + low).view(-1, 1, 1)  # of each matrix [M, 1, 1], with its low key added
        self.high_key = high.repeat(plan.heads).view(-1, 1, 1)  # [M, 1, 1]

    def keep_mask(self, block: Block) -> Tensor:
        """1 where a weight is kept, 0 where it is dropped, int16: [m, rows, keys]."""
        rows, keys, matrices, _ = block
        first = self.first_row + rows.start
        words = _word_numbers(range(first, first + rows.stop - rows.start), (keys + 1) // 2, self.words_of_row)
        kept = draw_keep_mask(words, self.rate, (self.first_word[matrices], self.high_key[matrices]))
        return kept[..., :keys]


@lru_cache(maxsize=256)
def _causal_mask(rows: int, keys: int, seen: int, dtype: torch.dtype) -> Tensor:
    """What is added to scores [rows, keys]: -inf where a key is hidden. The first row sees `seen` keys, each next one
    key more."""
    return torch.full((rows, keys), -math.inf, dtype=dtype).triu(seen)


@lru_cache(maxsize=256)
def _word_numbers(rows: range, columns: int, words_of_row: int) -> Tensor:
    """Numbers [rows, columns] of the first words of some rows of a matrix."""
    return torch.tensor(rows, dtype=torch.int32)[:, None] * words_of_row + torch.arange(columns, dtype=torch.int32)


def _bounded(heads: Heads) -> bool:
    """Whether no score can reach `SAFE_SCORE`, by the largest norms of a query and of a key."""
    query, key = (float(x.square().sum(0).max()) for x in (heads.query, heads.key_value[0]))
    return query * key < SAFE_SCORE**2


def query_scale(width: int) -> float:
    """What the queries of heads of `width` channels are multiplied by, for scores of base 2."""
    return width**-0.5 / LN_2
