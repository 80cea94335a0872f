"""The plain torch form of `dmd.kernels.attention`, made for CPUs.

It works through pieces that fit into the cache and skips the keys that no query of a piece sees.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmd.kernels.attention import AttentionPlan
from dmd.kernels.noise import Noise, keep_scale, kept_elements

PIECE_ELEMENTS = 2**19
"""Attention weights of one piece: 2 MB in float32."""
PIECE_ROWS = 64
"""Query rows of one piece."""
LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class _Piece:
    """Rows and samples of one encoder that are computed together."""

    encoder: int
    samples: slice
    rows: range
    """Query rows, as in the whole sequence."""
    keys: int
    """Keys that any of these rows sees."""
    ghost: int
    """Place of its ghost batch in the batch."""
    first_sample: int
    """Its first sample inside that ghost batch."""


def _pieces(plan: AttentionPlan, batch: int, unit: int) -> Iterator[_Piece]:
    """All pieces of a batch of ghost batches of `unit` samples."""
    for encoder in range(len(plan.queries)):
        first, end = plan.rows(encoder)
        for begin in range(first, end, PIECE_ROWS):
            rows = range(begin, min(begin + PIECE_ROWS, end))
            keys = plan.visible(encoder, rows[-1])
            at_once = max(1, PIECE_ELEMENTS // (plan.heads * len(rows) * keys))
            for ghost in range(batch // unit):
                for sample in range(0, unit, at_once):
                    where = slice(ghost * unit + sample, ghost * unit + min(sample + at_once, unit))
                    yield _Piece(encoder, where, rows, keys, ghost, sample)


class _Heads:
    """Moves between [b, t, d] and [b * H, d / H, t]; products over so few channels are fastest with time last."""

    def __init__(self, heads: int) -> None:
        self.heads = heads

    def split(self, x: Tensor, scale: float = 1.0) -> Tensor:
        batch, steps, dim = x.shape
        out = torch.empty(batch, self.heads, dim // self.heads, steps, dtype=x.dtype, device=x.device)
        torch.mul(x.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1), scale, out=out)
        return out.flatten(0, 1)

    def join(self, x: Tensor) -> Tensor:
        rows, width, steps = x.shape
        return x.view(rows // self.heads, self.heads, width, steps).permute(0, 3, 1, 2).flatten(2)


class _Weights:
    """Attention weights and dropout masks of the pieces of one call."""

    def __init__(self, plan: AttentionPlan, noise: Noise | None, site: int | None, valid: Tensor | None) -> None:
        self.plan, self.noise, self.site, self.valid = plan, noise, site, valid
        self._hidden: dict[tuple[int, int, int], Tensor | None] = {}
        self._words: dict[tuple[int, int, int, int], Tensor] = {}

    def unit(self, batch: int) -> int:
        """Samples that belong together in the pieces."""
        return batch if self.site is None or self.noise is None else self.noise.ghost_size

    def scores(self, piece: _Piece, q: Tensor, k: Tensor) -> Tensor:
        """q k, -inf where hidden: q [b*H, h, rows] and k [b*H, h, keys] -> [b*H, rows, keys]."""
        hidden = self._mask(piece, q)
        scores = torch.bmm(q.transpose(1, 2), k) if hidden is None else torch.baddbmm(hidden, q.transpose(1, 2), k)
        if self.valid is not None:
            begin, end = self.valid[piece.encoder, piece.samples].unsqueeze(1).unbind(-1)  # [b, 1]
            frame = torch.arange(piece.keys)
            unreal = (frame < begin) | (frame >= end)  # [b, keys]
            scores.unflatten(0, (-1, self.plan.heads)).masked_fill_(unreal[:, None, None], -math.inf)
        return scores

    def kept(self, piece: _Piece, like: Tensor) -> Tensor | None:
        """1 where dropout keeps a weight [b*H, rows, keys], 0 where not; None without dropout."""
        rate = self.plan.rates[piece.encoder]
        if self.site is None or rate == 0:
            return None
        assert self.noise is not None
        length, words = self.plan.queries[piece.encoder], (self.plan.keys[piece.encoder] + 1) // 2
        first, end = piece.rows.start, piece.rows.stop
        shape = (piece.encoder, like.shape[0], first, piece.keys)
        if shape not in self._words:
            matrix = torch.arange(like.shape[0], dtype=torch.int32)[:, None, None] * length
            row = torch.arange(first, end, dtype=torch.int32)[:, None]
            self._words[shape] = (matrix + row) * words + torch.arange((piece.keys + 1) // 2, dtype=torch.int32)
        low, high = self.noise.key(piece.ghost, self.site, piece.encoder)
        offset = piece.first_sample * self.plan.heads * length * words
        key = ((low + offset + 2**31) % 2**32 - 2**31, high)
        return kept_elements(self._words[shape], rate, key, like.dtype)[..., : piece.keys]

    def _mask(self, piece: _Piece, like: Tensor) -> Tensor | None:
        """Additive mask [rows, keys]; None where every row sees every key."""
        key = (piece.encoder, piece.rows.start, piece.keys)
        if key not in self._hidden:
            visible = [self.plan.visible(piece.encoder, row) for row in piece.rows]
            mask = None
            if min(visible) < piece.keys:
                hidden = torch.arange(piece.keys)[None] >= torch.tensor(visible)[:, None]
                mask = torch.zeros(hidden.shape, dtype=like.dtype).masked_fill_(hidden, -math.inf)
            self._hidden[key] = mask
        return self._hidden[key]


def _with_ones(k: Tensor) -> Tensor:
    """One more channel, of ones, so that a product can subtract a number from each row of scores."""
    return torch.cat([k, torch.ones_like(k[:, :1])], dim=1)


def _local(plan: AttentionPlan, piece: _Piece) -> slice:
    """Where the piece's rows lie in the query tensor."""
    return slice(0, 1) if plan.last_step else slice(piece.rows.start, piece.rows.stop)


class PlainAttention(torch.autograd.Function):
    """Keeps query, key, value, the output and each row's log-sum (base 2) for backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, noise: Noise | None,
                site: int | None, valid: Tensor | None) -> Tensor:  # fmt: skip
        heads, factor = _Heads(plan.heads), (query.shape[-1] // plan.heads) ** -0.5
        out = torch.zeros_like(query)
        weigh = _Weights(plan, noise, site, valid)
        sums = []
        for piece in _pieces(plan, query.shape[1], weigh.unit(query.shape[1])):
            e, b, rows = piece.encoder, piece.samples, _local(plan, piece)
            q = heads.split(query[e, b, rows], factor * LOG2_E)
            k, v = heads.split(key[e, b, : piece.keys]), heads.split(value[e, b, : piece.keys])
            weights = weigh.scores(piece, q, k)
            top = weights.amax(-1)  # [b*H, rows]
            if valid is not None:
                top.clamp_(min=torch.finfo(top.dtype).min)  # -inf in a row that sees no key
            weights.sub_(top.unsqueeze(-1)).exp2_()
            total = weights.sum(-1).clamp_(min=1)  # the largest weight is 1, unless the row sees no key
            kept = weigh.kept(piece, weights)
            scale = 1.0 if kept is None else keep_scale(plan.rates[e])
            if kept is not None:
                weights *= kept
            mixed = torch.bmm(v, weights.transpose(1, 2)) * (scale / total).unsqueeze(1)
            out[e, b, rows] = heads.join(mixed)
            sums.append(top + total.log2())
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.plan, ctx.noise, ctx.site, ctx.valid = plan, noise, site, valid
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *sums = ctx.saved_tensors
        plan: AttentionPlan = ctx.plan
        heads, factor = _Heads(plan.heads), (query.shape[-1] // plan.heads) ** -0.5
        grad_q, grad_k, grad_v = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        weigh = _Weights(plan, ctx.noise, ctx.site, ctx.valid)
        for piece, shift in zip(_pieces(plan, query.shape[1], weigh.unit(query.shape[1])), sums, strict=True):
            e, b, rows = piece.encoder, piece.samples, _local(plan, piece)
            q = heads.split(query[e, b, rows], factor)
            k, v = heads.split(key[e, b, : piece.keys]), heads.split(value[e, b, : piece.keys])
            grad = heads.split(gradients[0][e, b, rows])  # [b*H, h, rows]
            mean = (grad * heads.split(out[e, b, rows])).sum(1)  # each row's sum of weight * its gradient
            weights = weigh.scores(piece, torch.cat([q * LOG2_E, -shift.unsqueeze(1)], 1), _with_ones(k)).exp2_()
            kept = weigh.kept(piece, weights)
            if kept is not None:
                grad *= keep_scale(plan.rates[e])
            grad_scores = torch.bmm(grad.transpose(1, 2), v)
            if kept is not None:
                grad_scores *= kept
            grad_scores.sub_(mean.unsqueeze(-1)).mul_(weights)
            if kept is not None:
                weights *= kept
            grad_v[e, b, : piece.keys] += heads.join(torch.bmm(grad, weights))
            grad_k[e, b, : piece.keys] += heads.join(torch.bmm(q, grad_scores))
            grad_q[e, b, rows] = heads.join(torch.bmm(k, grad_scores.transpose(1, 2))) * factor
        return grad_q, grad_k, grad_v, None, None, None, None
