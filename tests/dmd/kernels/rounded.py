"""Encoder layers in PyTorch that round where the Triton kernels do under bfloat16 autocast, and nowhere else.

Operands of products, forward and backward, and queries, keys, values and the attention's output with their gradients
are rounded to bfloat16. Sums and all the rest are of the input's type: with float64, what is left of an error against
PyTorch is what these roundings cost.
"""

from typing import Any

import torch
from torch import Tensor

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.rng import DropoutRNG, draw_keep_mask, keep_scale
from dmd.kernels.encoder.plan import LayerPlan, LayerWeights
from dmd.kernels.portable import PortableBackend, normalise, pick_steps


def rounded(x: Tensor) -> Tensor:
    """The nearest bfloat16 numbers, in the type of x."""
    return x.bfloat16().to(x.dtype)


class Product(torch.autograd.Function):
    """a @ b of rounded operands, and so the products of its backward pass."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(rounded(a), rounded(b))
        return rounded(a) @ rounded(b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        grad = rounded(gradients[0])
        return grad @ b.transpose(-1, -2), a.transpose(-1, -2) @ grad


class Stored(torch.autograd.Function):
    """A tensor that lies in memory as bfloat16, and so does its gradient."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return rounded(x)

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return rounded(gradients[0])


class RoundedBackend(PortableBackend):
    """PyTorch with rounded products in its encoder layers."""

    def layer(
        self,
        x: Tensor,
        source: Tensor | None,
        weights: LayerWeights,
        plan: LayerPlan,
        *,
        members: Tensor,
        last: Tensor | None,
        rng: DropoutRNG | None,
        key_ranges: Tensor | None,
    ) -> Tensor:
        """As the portable layer, for all keys real."""
        assert key_ranges is None

        def linear(x: Tensor, weight: Tensor, bias: Tensor, rows: slice = slice(None)) -> Tensor:
            return Product.apply(x, weight[members, None, rows].transpose(-1, -2)) + bias[members, None, None, rows]

        def norm(normed: Tensor, which: int) -> Tensor:
            return (
                normed * weights.norm_weight[which, members, None, None] + weights.norm_bias[which, members, None, None]
            )

        dim = x.shape[-1]
        keys = norm(normalise(x) if source is None else source, 0)
        if last is not None:
            x = pick_steps(x, last)
        query = Stored.apply(linear(norm(normalise(x), 0), weights.in_proj_weight, weights.in_proj_bias, slice(dim)))
        both = Stored.apply(linear(keys, weights.in_proj_weight, weights.in_proj_bias, slice(dim, None)))
        mixed = Stored.apply(attention(query, *both.chunk(2, -1), plan.attention, rng))
        attended = linear(mixed, weights.out_proj_weight, weights.out_proj_bias)
        x = x + self.dropout(attended, plan.res_rate, rng, batch_dim=1)
        hidden = linear(norm(normalise(x), 1), weights.fc1_weight, weights.fc1_bias).relu()
        hidden = self.dropout(hidden, plan.relu_rate, rng, batch_dim=1)
        branch = linear(hidden, weights.fc2_weight, weights.fc2_bias)
        return x + self.dropout(branch, plan.res_rate, rng, batch_dim=1)


def attention(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, rng: DropoutRNG | None) -> Tensor:
    """As `Backend.attention`, encoder by encoder."""
    call_site = plan.next_call_site(rng)
    outs = torch.zeros_like(query)
    for e, (tq, tk) in enumerate(zip(plan.queries, plan.keys, strict=True)):
        first, end = plan.rows(e)
        q, k, v = (
            x[e, :, :steps].unflatten(-1, (plan.heads, -1)).transpose(1, 2)
            for x, steps in ((query, end - first), (key, tk), (value, tk))
        )  # [B, H, T, h]
        scores = Product.apply(q, k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        hidden = torch.arange(tk) > torch.arange(first, end)[:, None] + abs(tq - tk)
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
        scale = 1.0
        if rng is not None and call_site is not None and plan.rates[e] > 0:
            words = torch.arange(plan.heads * tq * ((tk + 1) // 2), dtype=torch.int32)
            low, high = rng.table([(call_site, e)])[0, :, None].unbind(-1)  # [B, 1]
            keep_mask = draw_keep_mask(words, plan.rates[e], (low, high))
            weights = weights * keep_mask.view(len(q), plan.heads, tq, -1)[:, :, first:, :tk]
            scale = keep_scale(plan.rates[e])
        mixed = Product.apply(weights, v) * scale
        outs[e, :, : end - first] = mixed.transpose(1, 2).flatten(2)
    return outs
