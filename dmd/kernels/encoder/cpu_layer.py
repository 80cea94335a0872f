"""A whole encoder layer in plain torch, made for CPUs: one encoder and some samples at a time (`layer_chunk`).

The same numbers as `PortableBackend.layer` composes from single operations, up to rounding.
"""

from typing import Any

import torch
from torch import Tensor

from dmd.kernels.attention.cpu_blocks import PieceAttention, chunks
from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.noise import Noise
from dmd.kernels.encoder.cpu_layer_chunk import Kept, LayerWork, Masks, Weights

CHUNK_STEPS = 8192
"""Time steps of all samples of a chunk, about."""
DROPOUTS = len(Masks._fields)


def plain_layer(
    x: Tensor,
    source: Tensor | None,
    last: Tensor | None,
    weights: Weights,
    plan: AttentionPlan,
    noise: Noise | None,
    site: int | None,
    valid: Tensor | None,
    masks: Masks,
) -> Tensor:
    """One layer of E encoders: attention and MLP, each with its residual.

    Args:
        x: [E, B, Tq, d].
        source: normalised key and value input [E, B, Tk, d]; None for self-attention.
        last: the only step that is wanted of each sample, [E, B] (as `plan.last_step` says); None: every step.
        noise, site: dropout of the attention weights, as drawn by `Noise.next_site`; None: no dropout.
        valid: see `Backend.attention`.

    Returns:
        [E, B, Tq, d], or [E, B, 1, d] with `last`. Under autocast it is computed in float32 all the same.
    """
    result = PlainLayer.apply(x, source, last, plan, noise, site, valid, *masks, *weights)
    assert isinstance(result, Tensor)
    return result


class PlainLayer(torch.autograd.Function):
    """Keeps the inputs of the layer norms and products, and the heads; attention weights are computed again."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(
        ctx: Any,
        x: Tensor,
        source: Tensor | None,
        last: Tensor | None,
        plan: AttentionPlan,
        noise: Noise | None,
        site: int | None,
        valid: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        masks, weights = Masks(*factors[:DROPOUTS]), Weights(*factors[DROPOUTS:])
        work = LayerWork(plan, PieceAttention(plan, noise, site, valid), weights, masks, last)
        encoders, batch, steps, dim = x.shape
        out = x.new_empty(encoders, batch, 1 if last is not None else steps, dim)
        at_once = max(1, CHUNK_STEPS // max(steps, 0 if source is None else source.shape[2]))
        ctx.chunks = list(chunks(plan, batch, work.attention.unit(batch), at_once))
        saved: list[Tensor | None] = []
        for chunk in ctx.chunks:
            saved += work.forward(chunk, x, source, out)
        ctx.save_for_backward(x, source, *weights, *saved)
        ctx.work = plan, work.attention, masks, last
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan, attention, masks, last = ctx.work
        x, source, *rest = ctx.saved_tensors
        weights, saved = Weights(*rest[: len(Weights._fields)]), rest[len(Weights._fields) :]
        work = LayerWork(plan, attention, weights, masks, last)
        grads = Weights(*(torch.zeros_like(weight) for weight in weights))
        grad_x = torch.empty_like(x) if last is None else torch.zeros_like(x)
        grad_source = None if source is None else torch.empty_like(source)
        upstream = gradients[0].contiguous()
        kept = len(Kept._fields)
        for number, chunk in enumerate(ctx.chunks):
            work.backward(
                chunk,
                x,
                Kept(*saved[number * kept : (number + 1) * kept]),
                source,
                upstream,
                grads,
                grad_x,
                grad_source,
            )
        return grad_x, grad_source, *[None] * (5 + DROPOUTS), *work.finish(grads)
