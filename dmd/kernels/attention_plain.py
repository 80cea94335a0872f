"""The plain torch form of `dmd.kernels.attention` on its own: `dmd.kernels.pieces` behind an autograd function."""

from typing import Any

import torch
from torch import Tensor

from dmd.kernels.attention import AttentionPlan
from dmd.kernels.noise import Noise
from dmd.kernels.pieces import Heads, PieceAttention, chunks, query_scale, split_heads


class PlainAttention(torch.autograd.Function):
    """Keeps the heads (with each row's log-sum) and what they gave for backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, noise: Noise | None,
                site: int | None, valid: Tensor | None) -> Tensor:  # fmt: skip
        pieces = PieceAttention(plan, noise, site, valid)
        batch, width = query.shape[1], query.shape[-1] // plan.heads
        ctx.chunks = list(chunks(plan, batch, pieces.unit(batch), batch))
        out = torch.zeros_like(query)
        saved = []
        for chunk in ctx.chunks:
            e, b = chunk.encoder, chunk.samples
            parts = []
            for x, last in ((query, 0.0), (key, 1.0), (value, None)):
                parts.append(split_heads(x[e, b].unflatten(-1, (plan.heads, width)).permute(0, 2, 3, 1), last))
            parts[0][:, :, :-1] *= query_scale(width)
            mixed = pieces.forward(chunk, Heads(*parts))
            out[e, b] = mixed.permute(0, 3, 1, 2).flatten(2)
            saved += [*parts, mixed]
        ctx.save_for_backward(*saved)
        ctx.pieces = pieces
        ctx.shapes = query.shape, key.shape
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        pieces: PieceAttention = ctx.pieces
        heads, (query, key) = pieces.plan.heads, ctx.shapes
        totals = [gradients[0].new_zeros(shape) for shape in (query, key, key)]
        scales = ((query[-1] // heads) ** -0.5, 1.0, 1.0)
        for number, chunk in enumerate(ctx.chunks):
            *parts, mixed = ctx.saved_tensors[4 * number : 4 * number + 4]
            e, b = chunk.encoder, chunk.samples
            grad = gradients[0][e, b].unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).contiguous()
            found = pieces.backward(chunk, Heads(*parts), mixed, grad)
            for total, part, scale in zip(totals, found, scales, strict=True):
                total[e, b] = part.permute(0, 3, 1, 2).flatten(2) * scale
        return *totals, None, None, None, None
