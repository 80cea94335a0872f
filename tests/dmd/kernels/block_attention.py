"""The CPU's block attention as a function with a gradient, to be checked apart from the layer around it."""

from typing import Any

import torch
from torch import Tensor

from dmd.kernels.attention.cpu_blocks import AttentionCall, Heads, query_scale
from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.rng import DropoutRNG


def block_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    rng: DropoutRNG | None = None,
    key_ranges: Tensor | None = None,
) -> Tensor:
    """As `Backend.attention`: query [E, B, Tq, d], key and value [E, B, Tk, d] -> like `query`."""
    call = AttentionCall.begin(plan, rng, key_ranges)
    scale = query_scale(query.shape[-1] // plan.heads)
    parts = (split(query * scale, plan.heads), split(key, plan.heads), split(value, plan.heads))
    mixed = [_Blocks.apply(*own, call, encoder, query.shape[1]) for encoder, own in enumerate(zip(*parts, strict=True))]
    return join(torch.stack(mixed), plan.heads)


class _Blocks(torch.autograd.Function):
    """One encoder."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, call: AttentionCall, encoder: int, batch: int
    ) -> Tensor:
        ctx.heads = Heads(query, torch.stack([key, value]))
        ctx.attention = call.of(encoder, slice(0, batch))
        ctx.attended = ctx.attention.forward(ctx.heads, for_backward=True)
        return ctx.attended.mixed.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.attention.backward(ctx.heads, ctx.attended, gradients[0])
        return found.query, *found.key_value, None, None, None


def split(x: Tensor, heads: int) -> Tensor:
    """[E, B, T, H * h] -> [E, h, H * B, T]."""
    return x.unflatten(-1, (heads, -1)).permute(0, 4, 3, 1, 2).flatten(2, 3).contiguous()


def join(x: Tensor, heads: int) -> Tensor:
    """[E, h, H * B, T] -> [E, B, T, H * h]."""
    return x.unflatten(2, (heads, -1)).permute(0, 3, 4, 2, 1).flatten(3)
