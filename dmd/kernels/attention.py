"""Attention of several MulT encoders at once, without ever holding an attention matrix.

Query, key and value are `[E, B, T, d]` for E encoders. Key j is visible to query i iff j <= i + |Tq - Tk| (the offset
causal mask of the published code), by each encoder's own lengths; frames past an encoder's length are padding.

This is the plain form, for CPUs: it works through pieces that fit into the cache, skips the keys that no query of a
piece sees, and computes everything again for backward, dropout masks included. Memory is linear in the lengths.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmd.kernels.noise import Noise, draw_dropped, keep_scale

PIECE_ELEMENTS = 2**19
"""Attention weights of one piece: 2 MB in float32."""
PIECE_ROWS = 64
"""Query rows of one piece."""


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """The shapes and rates of one call."""

    heads: int
    queries: tuple[int, ...]
    """Length of each encoder's query sequence."""
    keys: tuple[int, ...]
    """Length of each encoder's key sequence."""
    rates: tuple[float, ...]
    """Dropout of each encoder's attention weights."""
    last_step: bool
    """The query holds only the last step of each sequence: [E, B, 1, d]."""

    def rows(self, encoder: int) -> tuple[int, int]:
        """(first, end) of the query rows, numbered as in the whole sequence."""
        end = self.queries[encoder]
        return (end - 1 if self.last_step else 0), end

    def visible(self, encoder: int, row: int) -> int:
        """How many keys a query row sees."""
        return min(self.keys[encoder], row + abs(self.queries[encoder] - self.keys[encoder]) + 1)


def attention(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, noise: Noise | None) -> Tensor:
    """softmax(q k^T / sqrt(d / H) + mask) v with dropout on the weights.

    Args:
        query: [E, B, Tq, d], or [E, B, 1, d] with `plan.last_step`.
        key: [E, B, Tk, d].
        value: [E, B, Tk, d].
        noise: random source of the dropout; None switches it off.

    Returns:
        like `query`; rows past an encoder's length are zero.
    """
    site = None if noise is None or not any(plan.rates) else noise.next_site()
    return _Attention.apply(query, key, value, plan, noise, site)


@dataclass(frozen=True)
class _Piece:
    """Rows and samples of one encoder that are computed together."""

    encoder: int
    samples: slice
    rows: range
    """Query rows, as in the whole sequence."""
    keys: int
    """Keys that any of these rows sees."""
    seed: tuple[int, ...]
    """(place of the ghost batch, site parts...) of the dropout; empty without one."""


def _pieces(plan: AttentionPlan, batch: int, ghost_size: int | None, site: int | None) -> Iterator[_Piece]:
    """All pieces. What a piece draws depends on its ghost batch, not on how many there are."""
    unit = batch if ghost_size is None else ghost_size
    for encoder in range(len(plan.queries)):
        first, end = plan.rows(encoder)
        for number, begin in enumerate(range(first, end, PIECE_ROWS)):
            rows = range(begin, min(begin + PIECE_ROWS, end))
            keys = plan.visible(encoder, rows[-1])
            at_once = max(1, PIECE_ELEMENTS // (plan.heads * len(rows) * keys))
            for ghost in range(batch // unit):
                for part, sample in enumerate(range(0, unit, at_once)):
                    where = slice(ghost * unit + sample, ghost * unit + min(sample + at_once, unit))
                    seed = () if site is None or not plan.rates[encoder] else (ghost, site, encoder, number, part)
                    yield _Piece(encoder, where, rows, keys, seed)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[b, t, d] -> [b * H, t, d / H], contiguous."""
    batch, steps, dim = x.shape
    return x.view(batch, steps, heads, dim // heads).transpose(1, 2).reshape(batch * heads, steps, dim // heads)


def _from_heads(x: Tensor, heads: int) -> Tensor:
    """[b * H, t, d / H] -> [b, t, d]."""
    rows, steps, width = x.shape
    return x.view(rows // heads, heads, steps, width).transpose(1, 2).reshape(rows // heads, steps, heads * width)


class _Weights:
    """Attention weights of pieces, into buffers that every piece of a call shares."""

    def __init__(self, plan: AttentionPlan, noise: Noise | None) -> None:
        self.plan, self.noise = plan, noise
        self._masks: dict[tuple[int, int, int], Tensor | None] = {}

    def __call__(self, piece: _Piece, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor | None]:
        """Softmax [b*H, rows, keys] from scaled query and key heads, and what dropout drops of it (None: nothing)."""
        weights = torch.bmm(query, key.transpose(1, 2))
        mask = self._mask(piece, weights)
        if mask is not None:
            weights += mask
        weights = torch.softmax(weights, dim=-1)
        if not piece.seed:
            return weights, None
        assert self.noise is not None
        generator = self.noise.generator(*piece.seed)
        return weights, draw_dropped(weights.numel(), self.plan.rates[piece.encoder], generator).view_as(weights)

    def _mask(self, piece: _Piece, like: Tensor) -> Tensor | None:
        """Additive mask [rows, keys]; None where every row sees every key."""
        key = (piece.encoder, piece.rows.start, piece.keys)
        if key not in self._masks:
            visible = [self.plan.visible(piece.encoder, row) for row in piece.rows]
            mask = None
            if min(visible) < piece.keys:
                hidden = torch.arange(piece.keys)[None] >= torch.tensor(visible)[:, None]
                mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, -math.inf).to(like.device)
            self._masks[key] = mask
        return self._masks[key]


def _local(plan: AttentionPlan, piece: _Piece) -> slice:
    """Where the piece's rows lie in the query tensor."""
    return slice(0, 1) if plan.last_step else slice(piece.rows.start, piece.rows.stop)


class _Attention(torch.autograd.Function):
    """Forward keeps query, key, value and the output; backward computes the weights again."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, noise: Noise | None,
                site: int | None) -> Tensor:  # fmt: skip
        heads, factor = plan.heads, (query.shape[-1] // plan.heads) ** -0.5
        out = torch.zeros_like(query)
        weigh = _Weights(plan, noise)
        for piece in _pieces(plan, query.shape[1], None if site is None or noise is None else noise.ghost_size, site):
            e, b, rows = piece.encoder, piece.samples, _local(plan, piece)
            q = _by_head(query[e, b, rows], heads) * factor
            weights, dropped = weigh(piece, q, _by_head(key[e, b, : piece.keys], heads))
            if dropped is not None:
                weights.masked_fill_(dropped, 0)
            mixed = torch.bmm(weights, _by_head(value[e, b, : piece.keys], heads))
            if dropped is not None:
                mixed *= keep_scale(plan.rates[e])
            out[e, b, rows] = _from_heads(mixed, heads)
        ctx.save_for_backward(query, key, value, out)
        ctx.plan, ctx.noise, ctx.site = plan, noise, site
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out = ctx.saved_tensors
        (grad_out,) = gradients
        plan: AttentionPlan = ctx.plan
        noise: Noise | None = ctx.noise
        heads, factor = plan.heads, (query.shape[-1] // plan.heads) ** -0.5
        grad_q, grad_k, grad_v = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        weigh = _Weights(plan, noise)
        ghost_size = None if ctx.site is None or noise is None else noise.ghost_size
        for piece in _pieces(plan, query.shape[1], ghost_size, ctx.site):
            e, b, rows = piece.encoder, piece.samples, _local(plan, piece)
            q = _by_head(query[e, b, rows], heads) * factor
            k, v = _by_head(key[e, b, : piece.keys], heads), _by_head(value[e, b, : piece.keys], heads)
            grad = _by_head(grad_out[e, b, rows], heads)
            mean = (grad * _by_head(out[e, b, rows], heads)).sum(-1, keepdim=True)  # rows' sum of weight * gradient
            weights, dropped = weigh(piece, q, k)
            if dropped is None:
                grad_weights = torch.bmm(grad, v.transpose(1, 2))
                grad_value = torch.bmm(weights.transpose(1, 2), grad)
            else:
                grad = grad * keep_scale(plan.rates[e])
                grad_weights = torch.bmm(grad, v.transpose(1, 2)).masked_fill_(dropped, 0)
                grad_value = torch.bmm(weights.masked_fill(dropped, 0).transpose(1, 2), grad)
            grad_scores = grad_weights.sub_(mean).mul_(weights)
            grad_v[e, b, : piece.keys] += _from_heads(grad_value, heads)
            grad_k[e, b, : piece.keys] += _from_heads(torch.bmm(grad_scores.transpose(1, 2), q), heads)
            grad_q[e, b, rows] = _from_heads(torch.bmm(grad_scores, k).mul_(factor), heads)
        return grad_q, grad_k, grad_v, None, None, None


