"""Attention of a chunk of samples in plain torch, forward and backward, made for CPUs.

It works through pieces that fit into the cache and skips the keys that no query of a piece sees. Products over so few
channels are fastest with time last, so heads lie as `[b, H, h + 1, T]`: h channels and one more, by which a product
subtracts a number from each row of scores (`Heads`).
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from dmd.kernels.attention import AttentionPlan
from dmd.kernels.noise import Noise, keep_scale, kept_elements

PIECE_ELEMENTS = 2**19
"""Attention weights of one piece: 2 MB in float32."""
PIECE_ROWS = 64
"""Query rows of one piece."""
KEPT_STEPS = 64
"""Sequences up to this length hold on to their dropout masks for backward, a byte for each weight, where longer ones
draw them again."""
LOG2_E = math.log2(math.e)
SAFE_SCORE = 60.0
"""Scores (base 2) that no exponential over- or underflows at, so that a row's largest need not be subtracted."""
LEAST_SUM = 2.0**-100
"""Less than the sum of any row's exponentials, unless the row sees no key."""


class Chunk(NamedTuple):
    """Samples of one encoder that are computed together."""

    encoder: int
    samples: slice
    """Their places in the batch."""


def chunks(plan: AttentionPlan, batch: int, unit: int, at_once: int) -> Iterator[Chunk]:
    """Chunks of about `at_once` samples: whole ghost batches of `unit` samples, or parts of one."""
    size = max(1, at_once // unit * unit or min(at_once, unit))
    for encoder in range(len(plan.queries)):
        edges = [at for ghost in range(0, batch, max(unit, size)) for at in range(ghost, ghost + unit, size)]
        for begin, end in zip(edges, [*edges[1:], batch], strict=True):
            yield Chunk(encoder, slice(begin, end))


class Heads(NamedTuple):
    """Query, key and value of a chunk."""

    query: Tensor
    """[b, H, h + 1, Tq]; its last channel is added to the scores of a row: minus its log-sum, after `forward`."""
    key: Tensor
    """[b, H, h + 1, Tk]; its last channel is 1."""
    value: Tensor
    """[b, H, h, Tk]."""


class PieceAttention:
    """Attention of chunks, forward and backward, with the same dropout masks in both.

    Scores have the base 2: the query has to come multiplied by `query_scale`. The gradient that it gives for the query
    is that of the query times 1 / sqrt(h).
    """

    def __init__(self, plan: AttentionPlan, noise: Noise | None, site: int | None, valid: Tensor | None) -> None:
        self.plan, self.noise, self.site, self.valid = plan, noise, site, valid
        self._hidden: dict[tuple[int, int, int, int], Tensor | None] = {}
        self._drawn: dict[tuple[int, int], Tensor] = {}

    def unit(self, batch: int) -> int:
        """Samples that no chunk may reach beyond."""
        return batch if self.noise is None else self.noise.ghost_size

    def forward(self, chunk: Chunk, heads: Heads) -> Tensor:
        """Mixed values [b, H, h, Tq]; sets the query's last channel."""
        query, key, value = heads
        mixed = value.new_empty(*value.shape[:3], query.shape[-1])
        mixed[..., self._end(chunk) :] = 0
        safe = _largest_norm(query) * _largest_norm(key) < SAFE_SCORE
        for rows, keys, part in self._pieces(chunk, len(query)):
            q, k, v = _matrices(query[part][..., rows]), _matrices(key[part][..., :keys]), value[part][..., :keys]
            weights = self._scores(chunk, rows, keys, part, q, k)
            top = None if safe else weights.amax(-1)  # [b*H, rows]
            if top is not None:
                top.clamp_(min=torch.finfo(top.dtype).min)  # -inf in a row that sees no key
                weights.sub_(top.unsqueeze(-1))
            total = weights.exp2_().sum(-1)
            if self.valid is not None:
                total.clamp_(min=LEAST_SUM)
            kept = self._kept(chunk, rows, keys, part, weights)
            scale = 1.0 if kept is None else keep_scale(self.plan.rates[chunk.encoder])
            if kept is not None:
                weights *= kept
            out = torch.bmm(_matrices(v), weights.transpose(1, 2)).mul_((scale / total).unsqueeze(1))
            mixed[part][..., rows] = out.unflatten(0, (-1, self.plan.heads))
            sums = total.log2() if top is None else top + total.log2()
            query[part][:, :, -1, rows] = -sums.unflatten(0, (-1, self.plan.heads))
        return mixed

    def backward(self, chunk: Chunk, heads: Heads, mixed: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value, [b, H, h, T] each, from that of `mixed`, which it overwrites."""
        query, key, value = heads
        grad_q, grad_k, grad_v = (value.new_empty(*value.shape[:3], x.shape[-1]) for x in heads)
        grad_q[..., self._end(chunk) :] = 0
        once = self._end(chunk) <= PIECE_ROWS and self.plan.keys[chunk.encoder] == key.shape[-1]
        if not once:
            grad_k.zero_()
            grad_v.zero_()
        mean = (grad * mixed).sum(2)  # each row's sum of weight * its gradient, [b, H, Tq]
        if self._drops(chunk):
            grad.mul_(keep_scale(self.plan.rates[chunk.encoder]))
        for rows, keys, part in self._pieces(chunk, len(query)):
            q, k = _matrices(query[part][..., rows]), _matrices(key[part][..., :keys])
            v, g = _matrices(value[part][..., :keys]), _matrices(grad[part][..., rows])
            weights = self._scores(chunk, rows, keys, part, q, k).exp2_()
            grad_scores = torch.bmm(g.transpose(1, 2), v)
            kept = self._kept(chunk, rows, keys, part, weights)
            if kept is not None:
                grad_scores *= kept
            grad_scores.sub_(mean[part][..., rows].flatten(0, 1).unsqueeze(-1)).mul_(weights)
            if kept is not None:
                weights *= kept
            for total, left, right, whole in (
                (grad_v[part][..., :keys], g, weights, once),
                (grad_k[part][..., :keys], q, grad_scores, once),
                (grad_q[part][..., rows], k, grad_scores.transpose(1, 2), True),
            ):
                found = torch.bmm(left, right).unflatten(0, (-1, self.plan.heads))[:, :, : value.shape[2]]
                if whole:
                    total.copy_(found)
                else:
                    total += found
        return grad_q, grad_k.div_(LOG2_E), grad_v

    def _pieces(self, chunk: Chunk, batch: int) -> Iterator[tuple[slice, int, slice]]:
        """(local rows, keys that any of them sees, local samples)."""
        first, end = self.plan.rows(chunk.encoder)
        unit = self.unit(batch)
        for begin in range(first, end, PIECE_ROWS):
            stop = min(begin + PIECE_ROWS, end)
            keys = self.plan.visible(chunk.encoder, stop - 1)
            at_once = max(1, PIECE_ELEMENTS // (self.plan.heads * (stop - begin) * keys))
            for ghost in range(0, batch, unit):
                for sample in range(ghost, min(ghost + unit, batch), at_once):
                    part = slice(sample, min(sample + at_once, ghost + unit, batch))
                    yield slice(begin - first, stop - first), keys, part

    def _scores(self, chunk: Chunk, rows: slice, keys: int, part: slice, q: Tensor, k: Tensor) -> Tensor:
        """q k, -inf where hidden: q [b*H, h + 1, rows] and k [b*H, h + 1, keys] -> [b*H, rows, keys]."""
        hidden = self._mask(chunk.encoder, rows, keys, q)
        scores = torch.bmm(q.transpose(1, 2), k) if hidden is None else torch.baddbmm(hidden, q.transpose(1, 2), k)
        if self.valid is not None:
            begin, end = self.valid[chunk.encoder, chunk.samples][part].unsqueeze(1).unbind(-1)  # [b, 1]
            frame = torch.arange(keys)
            unreal = (frame < begin) | (frame >= end)  # [b, keys]
            scores.unflatten(0, (-1, self.plan.heads)).masked_fill_(unreal[:, None, None], -math.inf)
        return scores

    def _end(self, chunk: Chunk) -> int:
        """Where the chunk's query rows end in its tensors; behind are rows of longer encoders."""
        first, end = self.plan.rows(chunk.encoder)
        return end - first

    def _drops(self, chunk: Chunk) -> bool:
        return self.site is not None and self.plan.rates[chunk.encoder] > 0

    def _kept(self, chunk: Chunk, rows: slice, keys: int, part: slice, like: Tensor) -> Tensor | None:
        """1 where dropout keeps a weight [b*H, rows, keys], 0 where not; None without dropout."""
        if not self._drops(chunk):
            return None
        assert self.noise is not None
        assert self.site is not None
        e, heads = chunk.encoder, self.plan.heads
        length, words = self.plan.queries[e], (self.plan.keys[e] + 1) // 2
        place = (e, chunk.samples.start + part.start)
        if place in self._drawn:
            return self._drawn[place].to(like.dtype)
        first = self.plan.rows(e)[0] + rows.start
        table = _word_table(like.shape[0], length, range(first, first + like.shape[1]), (keys + 1) // 2, words)
        ghost, sample = divmod(place[1], self.noise.ghost_size)
        low, high = self.noise.key(ghost, self.site, e)
        offset = sample * heads * length * words
        shifted = ((low + offset + 2**31) % 2**32 - 2**31, high)
        kept = kept_elements(table, self.plan.rates[e], shifted, like.dtype)[..., :keys]
        if max(length, keys) <= KEPT_STEPS:
            self._drawn[place] = kept.bool().view(torch.uint8)
        return kept

    def _mask(self, encoder: int, rows: slice, keys: int, like: Tensor) -> Tensor | None:
        """Additive mask [rows, keys]; None where every row sees every key."""
        first = self.plan.rows(encoder)[0] + rows.start
        key = (self.plan.queries[encoder], self.plan.keys[encoder], first, keys)
        if key not in self._hidden:
            visible = [self.plan.visible(encoder, row) for row in range(first, first + rows.stop - rows.start)]
            mask = None
            if min(visible) < keys:
                hidden = torch.arange(keys)[None] >= torch.tensor(visible)[:, None]
                mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, -math.inf)
            self._hidden[key] = mask
        return self._hidden[key]


@lru_cache(maxsize=32)
def _word_table(matrices: int, length: int, rows: range, columns: int, words: int) -> Tensor:
    """Numbers [matrices, rows, columns] of the first words of these rows, in matrices of `length` rows of `words`."""
    row = torch.arange(matrices, dtype=torch.int32)[:, None] * length + torch.tensor(rows, dtype=torch.int32)
    return row.mul_(words)[..., None] + torch.arange(columns, dtype=torch.int32)


def query_scale(head_dim: int) -> float:
    """What `PieceAttention` wants the query multiplied by."""
    return head_dim**-0.5 * LOG2_E


def split_heads(x: Tensor, last: float | None) -> Tensor:
    """[b, H, h, T] in any layout as [b, H, h + 1, T] with time last, the last channel set; None: without that."""
    batch, heads, width, steps = x.shape
    out = x.new_empty(batch, heads, width + (last is not None), steps)
    out[:, :, :width] = x
    if last is not None:
        out[:, :, width] = last
    return out


def _matrices(x: Tensor) -> Tensor:
    """[b, H, c, T] as [b*H, c, T]; batched products are slow where these do not follow on each other."""
    return x.flatten(0, 1).contiguous()


def _largest_norm(x: Tensor) -> float:
    """Largest length of the vectors in x [b, H, h + 1, T], without the last channel."""
    return float(x[:, :, :-1].square().sum(2).max().sqrt())
