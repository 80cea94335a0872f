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

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.keys import key_table
from dmd.kernels.dropout.noise import Noise, keep_scale, kept_elements

PIECE_ELEMENTS = 2**19
"""Attention weights of one piece: 2 MB in float32."""
SHORT = 64
"""Sequences up to this length hold on to their dropout masks for backward, a byte for each weight, where longer ones
draw them again; and their pieces have fewer rows."""
SHORT_ROWS, LONG_ROWS = 16, 64
"""Query rows of one piece: multiples of 16, which products of small matrices are fastest for."""
LOG2_E = math.log2(math.e)
SAFE_SCORE = 60.0
"""Scores (base 2) that no exponential over- or underflows at, so that a row's largest need not be subtracted."""


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


class Attended(NamedTuple):
    """What attention gives for a chunk and its backward needs."""

    mixed: Tensor
    """Values, [h, M, Tq]."""
    inverse: Tensor
    """Dropout's scale / the sum of each row's exponentials, [M, Tq]; 0 in a row that sees no key."""
    top: Tensor | None
    """What was taken from each row's scores before, [M, Tq]; None: nothing."""


class PieceAttention:
    """Attention of chunks, forward and backward, with the same dropout masks in both.

    Scores have the base 2: the query has to come multiplied by `query_scale`. The gradients that it gives for query and
    key are those of the unscaled ones once multiplied by `gradient_scales`.
    """

    def __init__(self, plan: AttentionPlan, noise: Noise | None, site: int | None, valid: Tensor | None) -> None:
        self.plan, self.noise, self.valid = plan, noise, valid
        self._keys = None  # [E, ghosts, 2]
        if noise is not None and site is not None:
            self._keys = key_table(noise, [(site, encoder) for encoder in range(len(plan.queries))])
        self._hidden: dict[tuple[int, int, int, int], Tensor] = {}
        self._drawn: dict[tuple[int, int, int, int], Tensor] = {}
        self._words: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def unit(self, batch: int) -> int:
        """Samples that no chunk may reach beyond."""
        return batch if self.noise is None else self.noise.ghost_size

    def forward(self, chunk: Chunk, heads: Heads) -> Attended:
        """Values mixed by softmax, dropout of the weights included."""
        mixed = torch.empty_like(heads.query)
        mixed[..., self._end(chunk) :] = 0
        sums = mixed.new_zeros(mixed.shape[1:])
        top = None if _bounded(heads.query, heads.key) else torch.zeros_like(sums)
        query, key, value, out = (x.transpose(0, 1) for x in (*heads, mixed))
        for rows, keys, part in self._pieces(chunk, len(query)):
            weights = self._scores(chunk, rows, keys, part, query[part, :, rows], key[part, :, :keys])
            if top is not None:
                largest = weights.amax(-1).clamp_(min=torch.finfo(weights.dtype).min)  # -inf in a row without a key
                weights.sub_(largest.unsqueeze(-1))
                top[part, rows] = largest
            sums[part, rows] = weights.exp2_().sum(-1)
            kept = self._kept(chunk, rows, part, weights)
            if kept is not None:
                weights *= kept
            out[part, :, rows] = torch.bmm(value[part, :, :keys], weights.transpose(1, 2))
        inverse = self._scale(chunk) / sums.masked_fill_(sums == 0, math.inf)
        return Attended(mixed.mul_(inverse), inverse, top)

    def backward(self, chunk: Chunk, heads: Heads, attended: Attended, grad: Tensor, into: Heads) -> None:
        """Fill `into`, the gradients of the heads, from that of the mixed values, which it overwrites."""
        mixed, inverse, top = attended
        end, reach = self._end(chunk), self.plan.keys[chunk.encoder]
        into.query[..., end:] = 0
        into.key[..., reach:] = 0
        into.value[..., reach:] = 0
        grad.mul_(inverse)
        # Each row's sum of weight * its gradient, over its sum of exponentials, [M, Tq].
        mean = (grad * mixed).sum(0).mul_(1 / self._scale(chunk))
        query, key, value, upstream, grad_q, grad_k, grad_v = (x.transpose(0, 1) for x in (*heads, grad, *into))
        for rows, keys, part in self._pieces(chunk, len(query)):
            q, k, v, g = query[part, :, rows], key[part, :, :keys], value[part, :, :keys], upstream[part, :, rows]
            weights = self._scores(chunk, rows, keys, part, q, k, None if top is None else top[part, rows]).exp2_()
            grad_scores = torch.bmm(g.transpose(1, 2), v)
            kept = self._kept(chunk, rows, part, weights)
            if kept is not None:
                grad_scores *= kept
            grad_scores.sub_(mean[part, rows].unsqueeze(-1)).mul_(weights)
            if kept is not None:
                weights *= kept
            grad_q[part, :, rows] = torch.bmm(k, grad_scores.transpose(1, 2))
            for total, left, right in ((grad_k, q, grad_scores), (grad_v, g, weights)):
                found, total = torch.bmm(left, right), total[part, :, :keys]
                if rows.stop == end:  # the first piece of these matrices, see `_pieces`
                    total.copy_(found)
                else:
                    total += found

    def _pieces(self, chunk: Chunk, matrices: int) -> Iterator[tuple[slice, int, slice]]:
        """(local rows, keys that any of them sees, matrices); the last rows, which see every key, come first."""
        first, end = self.plan.rows(chunk.encoder)
        size = SHORT_ROWS if self._short(chunk.encoder) else LONG_ROWS
        for begin in reversed(range(first, end, size)):
            stop = min(begin + size, end)
            keys = self.plan.visible(chunk.encoder, stop - 1)
            at_once = max(1, PIECE_ELEMENTS // ((stop - begin) * keys))
            for matrix in range(0, matrices, at_once):
                yield slice(begin - first, stop - first), keys, slice(matrix, min(matrix + at_once, matrices))

    def _scores(
        self, chunk: Chunk, rows: slice, keys: int, part: slice, q: Tensor, k: Tensor, top: Tensor | None = None
    ) -> Tensor:
        """q k less its row's top [m, rows], -inf where hidden: [m, h, rows] and [m, h, keys] -> [m, rows, keys]."""
        hidden = self._mask(chunk.encoder, rows, keys, q)
        start, q = hidden if top is None else hidden - top.unsqueeze(-1), q.transpose(1, 2)
        scores = torch.baddbmm(start, q, k)  # where nothing is hidden, too: of small matrices, bmm is slower
        if self.valid is not None:
            limits = self.valid[chunk.encoder, chunk.samples].repeat(self.plan.heads, 1)[part]  # [m, 2]
            begin, end = limits[:, None, None].unbind(-1)  # [m, 1, 1]
            frame = torch.arange(keys)
            scores.masked_fill_((frame < begin) | (frame >= end), -math.inf)
        return scores

    def _short(self, encoder: int) -> bool:
        return max(self.plan.queries[encoder], self.plan.keys[encoder]) <= SHORT

    def _end(self, chunk: Chunk) -> int:
        """Where the chunk's query rows end in its tensors; behind are rows of longer encoders."""
        first, end = self.plan.rows(chunk.encoder)
        return end - first

    def _scale(self, chunk: Chunk) -> float:
        """What dropout multiplies the weights by that it keeps."""
        return 1.0 if self._keys is None else keep_scale(self.plan.rates[chunk.encoder])

    def _kept(self, chunk: Chunk, rows: slice, part: slice, like: Tensor) -> Tensor | None:
        """1 where dropout keeps a weight [m, rows, keys], 0 where not; None without dropout."""
        e, keys = chunk.encoder, like.shape[-1]
        if self._keys is None or self.plan.rates[e] == 0:
            return None
        place = (e, chunk.samples.start, part.start, rows.start)
        if place in self._drawn:
            return self._drawn[place].to(like.dtype)
        first = self.plan.rows(e)[0]
        table = _word_table(range(first + rows.start, first + rows.stop), (keys + 1) // 2, (self.plan.keys[e] + 1) // 2)
        low, high = self._first_words(chunk)
        kept = kept_elements(table, self.plan.rates[e], (low[part], high[part]))[..., :keys]
        if self._short(e):
            self._drawn[place] = kept.to(torch.uint8)
        return kept.to(like.dtype)

    def _first_words(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Of each matrix: its first word with the low key added, and the high key, [M, 1, 1], int32."""
        assert self.noise is not None
        assert self._keys is not None
        e, begin, size, heads = chunk.encoder, chunk.samples.start, self.noise.ghost_size, self.plan.heads
        if (e, begin) not in self._words:
            low, high = self._keys[e].repeat_interleave(size, 0)[chunk.samples].unbind(-1)  # [b]
            sample = torch.arange(begin, chunk.samples.stop, dtype=torch.int32) % size
            matrix = sample * heads + torch.arange(heads, dtype=torch.int32).unsqueeze(1)  # [H, b]
            words = low + matrix * (self.plan.queries[e] * ((self.plan.keys[e] + 1) // 2))
            self._words[e, begin] = words.view(-1, 1, 1), high.repeat(heads).view(-1, 1, 1)
        return self._words[e, begin]

    def _mask(self, encoder: int, rows: slice, keys: int, like: Tensor) -> Tensor:
        """What hides keys, [rows, keys]: 0, or -inf."""
        first = self.plan.rows(encoder)[0] + rows.start
        key = (self.plan.queries[encoder], self.plan.keys[encoder], first, keys)
        if key not in self._hidden:
            visible = [self.plan.visible(encoder, row) for row in range(first, first + rows.stop - rows.start)]
            hidden = torch.arange(keys)[None] >= torch.tensor(visible)[:, None]
            self._hidden[key] = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, -math.inf)
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
