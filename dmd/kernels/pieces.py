"""Attention of a chunk of samples in plain torch, forward and backward, made for CPUs.

It works through pieces that fit into the cache and skips the keys that no query of a piece sees. Heads lie as they come
out of a projection whose rows are sorted by channel and then by head, `[h, M, T]` for M = H * b matrices. So nothing is
copied to split or to join heads, and any run of matrices is a batched product.
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
    """Query, key and value of a chunk of b samples; matrix head * b + sample is one head of one sample."""

    query: Tensor
    """[h, M, Tq]."""
    key: Tensor
    """[h, M, Tk]."""
    value: Tensor
    """[h, M, Tk]."""


class PieceAttention:
    """Attention of chunks, forward and backward, with the same dropout masks in both.

    Scores have the base 2: the query has to come multiplied by `query_scale`. The gradients that it gives for query and
    key are those of the unscaled ones once multiplied by `gradient_scales`.
    """

    def __init__(self, plan: AttentionPlan, noise: Noise | None, site: int | None, valid: Tensor | None) -> None:
        self.plan, self.noise, self.site, self.valid = plan, noise, site, valid
        self._hidden: dict[tuple[int, int, int, int], Tensor | None] = {}
        self._drawn: dict[tuple[int, int, int], Tensor] = {}

    def unit(self, batch: int) -> int:
        """Samples that no chunk may reach beyond."""
        return batch if self.noise is None else self.noise.ghost_size

    def forward(self, chunk: Chunk, heads: Heads) -> tuple[Tensor, Tensor]:
        """Mixed values [h, M, Tq] and the logarithm (base 2) of each row's sum of exponentials, [M, Tq]."""
        query, key, value = heads
        mixed = value.new_empty(*value.shape[:2], query.shape[-1])
        mixed[..., self._end(chunk) :] = 0
        sums = query.new_empty(query.shape[1:])
        words, safe = self._words(chunk), _bounded(query, key)
        for rows, keys, part in self._pieces(chunk, query.shape[1]):
            q, k, v = (_matrices(x, part) for x in heads)
            weights = self._scores(chunk, rows, keys, part, q[..., rows], k[..., :keys])
            top = None if safe else weights.amax(-1)  # [m, rows]
            if top is not None:
                top.clamp_(min=torch.finfo(top.dtype).min)  # -inf in a row that sees no key
                weights.sub_(top.unsqueeze(-1))
            total = weights.exp2_().sum(-1)
            if self.valid is not None:
                total.clamp_(min=LEAST_SUM)
            kept = self._kept(chunk, rows, part, weights, words)
            if kept is not None:
                weights *= kept
            scale = 1.0 if kept is None else keep_scale(self.plan.rates[chunk.encoder])
            out = torch.bmm(v[..., :keys], weights.transpose(1, 2)).mul_((scale / total).unsqueeze(1))
            _matrices(mixed, part)[..., rows] = out
            sums[part, rows] = total.log2() if top is None else top + total.log2()
        return mixed, sums

    def backward(self, chunk: Chunk, heads: Heads, mixed: Tensor, sums: Tensor, grad: Tensor, into: Heads) -> None:
        """Fill `into`, the gradients of the heads, from that of `mixed`, which it overwrites."""
        query, key, _ = heads
        grad_q, grad_k, grad_v = into
        grad_q[..., self._end(chunk) :] = 0
        once = self._end(chunk) <= PIECE_ROWS and self.plan.keys[chunk.encoder] == key.shape[-1]
        if not once:
            grad_k.zero_()
            grad_v.zero_()
        mean = (grad * mixed).sum(0)  # each row's sum of weight * its gradient, [M, Tq]
        words = self._words(chunk)
        if words is not None:
            grad.mul_(keep_scale(self.plan.rates[chunk.encoder]))
        for rows, keys, part in self._pieces(chunk, query.shape[1]):
            q, k, v, g = (_matrices(x, part) for x in (*heads, grad))
            q, k, v, g = q[..., rows], k[..., :keys], v[..., :keys], g[..., rows]
            weights = self._scores(chunk, rows, keys, part, q, k, sums[part, rows]).exp2_()
            grad_scores = torch.bmm(g.transpose(1, 2), v)
            kept = self._kept(chunk, rows, part, weights, words)
            if kept is not None:
                grad_scores *= kept
            grad_scores.sub_(mean[part, rows].unsqueeze(-1)).mul_(weights)
            if kept is not None:
                weights *= kept
            for total, left, right, whole in (
                (_matrices(grad_v, part)[..., :keys], g, weights, once),
                (_matrices(grad_k, part)[..., :keys], q, grad_scores, once),
                (_matrices(grad_q, part)[..., rows], k, grad_scores.transpose(1, 2), True),
            ):
                found = torch.bmm(left, right)
                if whole:
                    total.copy_(found)
                else:
                    total += found

    def _pieces(self, chunk: Chunk, matrices: int) -> Iterator[tuple[slice, int, slice]]:
        """(local rows, keys that any of them sees, matrices)."""
        first, end = self.plan.rows(chunk.encoder)
        for begin in range(first, end, PIECE_ROWS):
            stop = min(begin + PIECE_ROWS, end)
            keys = self.plan.visible(chunk.encoder, stop - 1)
            at_once = max(1, PIECE_ELEMENTS // ((stop - begin) * keys))
            for matrix in range(0, matrices, at_once):
                yield slice(begin - first, stop - first), keys, slice(matrix, min(matrix + at_once, matrices))

    def _scores(self, chunk: Chunk, rows: slice, keys: int, part: slice, q: Tensor, k: Tensor,
                sums: Tensor | None = None) -> Tensor:  # fmt: skip
        """q k less its row's sum [m, rows], -inf where hidden: [m, h, rows] and [m, h, keys] -> [m, rows, keys]."""
        hidden = self._mask(chunk.encoder, rows, keys, q)
        start, q = None if sums is None else -sums.unsqueeze(-1), q.transpose(1, 2)
        if start is None:
            scores = torch.bmm(q, k) if hidden is None else torch.baddbmm(hidden, q, k)
        else:
            scores = torch.baddbmm(start, q, k) if hidden is None else hidden.add(start).baddbmm_(q, k)
        if self.valid is not None:
            limits = self.valid[chunk.encoder, chunk.samples].repeat(self.plan.heads, 1)[part]  # [m, 2]
            begin, end = limits[:, None, None].unbind(-1)  # [m, 1, 1]
            frame = torch.arange(keys)
            scores.masked_fill_((frame < begin) | (frame >= end), -math.inf)
        return scores

    def _end(self, chunk: Chunk) -> int:
        """Where the chunk's query rows end in its tensors; behind are rows of longer encoders."""
        first, end = self.plan.rows(chunk.encoder)
        return end - first

    def _words(self, chunk: Chunk) -> tuple[Tensor, Tensor] | None:
        """Of each matrix: its first word, the low key added, and the high key, [M, 1, 1]; None without dropout."""
        e, heads = chunk.encoder, self.plan.heads
        if self.site is None or self.plan.rates[e] == 0:
            return None
        assert self.noise is not None
        size, samples = self.noise.ghost_size, torch.arange(chunk.samples.start, chunk.samples.stop)
        first, last = chunk.samples.start // size, (chunk.samples.stop - 1) // size
        keys = torch.tensor([self.noise.key(ghost, self.site, e) for ghost in range(first, last + 1)])
        low, high = keys[samples // size - first].unbind(-1)  # [b]
        matrix = samples % size * heads + torch.arange(heads)[:, None]  # [H, b]
        begin = low + matrix * self.plan.queries[e] * ((self.plan.keys[e] + 1) // 2)
        return begin.to(torch.int32).view(-1, 1, 1), high.to(torch.int32).repeat(heads).view(-1, 1, 1)

    def _kept(
        self, chunk: Chunk, rows: slice, part: slice, like: Tensor, words: tuple[Tensor, Tensor] | None
    ) -> Tensor | None:
        """1 where dropout keeps a weight [m, rows, keys], 0 where not; None without dropout."""
        if words is None:
            return None
        e, keys = chunk.encoder, like.shape[-1]
        place = (e, chunk.samples.start, part.start)
        if place in self._drawn:
            return self._drawn[place].to(like.dtype)
        first = self.plan.rows(e)[0]
        table = _word_table(range(first + rows.start, first + rows.stop), (keys + 1) // 2, (self.plan.keys[e] + 1) // 2)
        low, high = words
        kept = kept_elements(table, self.plan.rates[e], (low[part], high[part]), like.dtype)[..., :keys]
        if max(self.plan.queries[e], keys) <= KEPT_STEPS:
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
def _word_table(rows: range, columns: int, words: int) -> Tensor:
    """Numbers [rows, columns] of the first words of these rows in a matrix whose rows have `words` of them."""
    return torch.tensor(rows, dtype=torch.int32)[:, None] * words + torch.arange(columns, dtype=torch.int32)


def query_scale(head_dim: int) -> float:
    """What `PieceAttention` wants the query multiplied by."""
    return head_dim**-0.5 * LOG2_E


def gradient_scales(head_dim: int) -> tuple[float, float, float]:
    """What the gradients that `PieceAttention` gives for query, key and value have to be multiplied by."""
    return head_dim**-0.5, 1 / LOG2_E, 1.0


def _matrices(x: Tensor, part: slice) -> Tensor:
    """Some matrices of x [c, M, T] as [m, c, T], not copied."""
    return x[:, part].transpose(0, 1)


def _bounded(query: Tensor, key: Tensor) -> bool:
    """Whether no score can reach `SAFE_SCORE`: by the largest numbers, or else by the largest norms."""
    if len(query) * _largest(query) * _largest(key) < SAFE_SCORE:
        return True
    norms = [float(x.square().sum(0).max().sqrt()) for x in (query, key)]
    return norms[0] * norms[1] < SAFE_SCORE


def _largest(x: Tensor) -> float:
    """The largest absolute value."""
    low, high = x.aminmax()
    return max(-float(low), float(high))
