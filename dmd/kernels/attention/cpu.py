"""Attention made for CPUs (`Backend.attention`): `cpu_blocks` behind an autograd function."""

from typing import Any

import torch
from torch import Tensor

from dmd.kernels.attention.cpu_blocks import Attended, Heads, PieceAttention, chunks, gradient_scales, query_scale
from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.noise import Noise


class PlainAttention(torch.autograd.Function):
    """Keeps the heads and what they gave for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        noise: Noise | None,
        site: int | None,
        valid: Tensor | None,
    ) -> Tensor:
        pieces = PieceAttention(plan, noise, site, valid)
        batch, width = query.shape[1], query.shape[-1] // plan.heads
        ctx.chunks = list(chunks(plan, batch, pieces.unit(batch), batch))
        out = torch.zeros_like(query)
        saved = []
        for chunk in ctx.chunks:
            e, b = chunk.encoder, chunk.samples
            parts = Heads(*(_split(x[e, b], plan.heads) for x in (query, key, value)))
            parts.query.mul_(query_scale(width))
            attended = pieces.forward(chunk, parts)
            out[e, b] = _join(attended.mixed, plan.heads)
            saved += [*parts, *attended]
        ctx.save_for_backward(*saved)
        ctx.pieces = pieces
        ctx.shapes = query.shape, key.shape
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pieces: PieceAttention = ctx.pieces
        heads, (query, key) = pieces.plan.heads, ctx.shapes
        totals = [gradients[0].new_zeros(shape) for shape in (query, key, key)]
        scales = gradient_scales(query[-1] // heads)
        for number, chunk in enumerate(ctx.chunks):
            saved = ctx.saved_tensors[6 * number : 6 * number + 6]
            parts, attended = Heads(*saved[:3]), Attended(*saved[3:])
            e, b = chunk.encoder, chunk.samples
            found = Heads(*(torch.empty_like(part) for part in parts))
            pieces.backward(chunk, parts, attended, _split(gradients[0][e, b], heads), found)
            for total, part, scale in zip(totals, found, scales, strict=True):
                total[e, b] = _join(part, heads) * scale
        return *totals, None, None, None, None


def _split(x: Tensor, heads: int) -> Tensor:
    """[b, T, H * h] -> [h, H * b, T]."""
    return x.unflatten(-1, (heads, -1)).permute(3, 2, 0, 1).clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _join(x: Tensor, heads: int) -> Tensor:
    """[h, H * b, T] -> [b, T, H * h]."""
    return x.unflatten(1, (heads, -1)).permute(2, 3, 1, 0).flatten(2)
