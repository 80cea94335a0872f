"""A stack of encoders as Triton kernels, all encoders together (see `dmd.kernels.encoder.plan`).

TritonBackend.encode -> run_stack -> FusedEmbed, FusedLayer for each level, FusedNorm
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from dmd.kernels.attention.triton_launch import AttentionLaunch
from dmd.kernels.common.block_sizes import padded
from dmd.kernels.common.launching import launch
from dmd.kernels.dropout.rng import DropoutRNG, keep_scale, threshold
from dmd.kernels.encoder.embed_and_norm_kernels import embed, embed_backward, norm, norm_backward
from dmd.kernels.encoder.plan import EncoderStack
from dmd.kernels.encoder.triton_layer import FusedLayer, LayerCall, empty, strides

BLOCK = 32
"""Rows of a program."""


@dataclass(frozen=True, kw_only=True)
class EmbedCall:
    """What an embedding is, beside its tensors."""

    table: Tensor
    positions: Tensor
    side: int
    """0: queries, 1: keys."""
    norm: bool
    steps: int
    rate: float
    keys: Tensor | None
    readers: tuple[int, ...] = ()
    """Which of the inputs [B, T, d] each encoder reads."""
    parts: int = 0
    """Or how many parts of one input [parts E, B, T, d / parts] each encoder reads."""


class FusedEmbed(torch.autograd.Function):
    """Up to three inputs [B, T, d], or one [parts E, B, T, d / parts] -> [E, B, T, d] float32."""

    @staticmethod
    def forward(ctx: Any, call: EmbedCall, *inputs: Tensor) -> Tensor:
        inputs = tuple(x if x.stride(-1) == 1 else x.contiguous() for x in inputs)
        dim = inputs[0].shape[-1] * max(1, call.parts)
        encoders = len(call.readers) or len(inputs[0]) // call.parts
        batch = inputs[0].shape[-3]
        out = torch.empty(encoders, batch, call.steps, dim, device=inputs[0].device)
        grid = (triton.cdiv(batch * call.steps, BLOCK), encoders)
        launch(
            embed,
            grid,
            *_three(inputs),
            out,
            call.positions,
            call.table,
            _keys(call),
            *_how(call, dim),
            *_places(inputs),
            *strides(out),
            batch,
            **_constants(call, batch, dim),
        )
        ctx.save_for_backward(*inputs)
        ctx.call, ctx.shape = call, out.shape
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        call: EmbedCall = ctx.call
        encoders, batch, steps, dim = ctx.shape
        grad = gradients[0] if gradients[0].stride(3) == 1 else gradients[0].contiguous()
        grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
        grid = (triton.cdiv(batch * steps, BLOCK), encoders if call.parts else len(inputs))
        launch(
            embed_backward,
            grid,
            *_three(inputs),
            grad,
            *_three(grads),
            call.positions,
            call.table,
            _keys(call),
            *_how(call, dim),
            *_places(inputs),
            *strides(grad),
            *_places(grads),
            batch,
            encoders,
            **_constants(call, batch, dim),
        )
        return None, *grads


def _three(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (*tensors, *tensors[:1] * (3 - len(tensors)))


def _places(inputs: tuple[Tensor, ...]) -> list[int]:
    """Strides of three inputs: (encoder, sample, step) of the first, (sample, step) of the others."""
    first, *rest = (x if x.dim() == 4 else x.unsqueeze(0) for x in _three(inputs))
    return [*first.stride()[:3], *(number for x in rest for number in x.stride()[1:3])]


def _keys(call: EmbedCall) -> Tensor:
    return call.table if call.keys is None else call.keys


def _how(call: EmbedCall, dim: int) -> tuple[int, float]:
    return sum(reader << (2 * e) for e, reader in enumerate(call.readers)), math.sqrt(dim)


def _constants(call: EmbedCall, batch: int, dim: int) -> dict[str, Any]:
    return {
        "PARTS": call.parts,
        "SIDE": call.side,
        "NORM": call.norm,
        "DROP": call.keys is not None,
        "THRESHOLD": threshold(call.rate),
        "SCALE": keep_scale(call.rate),
        "GHOST": batch if call.keys is None else batch // call.keys.shape[1],
        "DIM": dim,
        "WIDTH": padded(dim),
        "M": BLOCK,
    }


class FusedNorm(torch.autograd.Function):
    """Layer norm of x [E, B, T, d] by gain and shift [E, d]; with `last`, T is 1 whatever the lengths."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, table: Tensor, last: bool) -> Tensor:
        encoders, batch, steps, dim = x.shape
        out = torch.empty_like(x)
        grid = (triton.cdiv(batch * steps, BLOCK), encoders)
        launch(
            norm, grid, x, out, gain, shift, table, *strides(x), batch, DIM=dim, WIDTH=padded(dim), LAST=last, M=BLOCK
        )
        ctx.save_for_backward(x, gain, table)
        ctx.last = last
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, table = ctx.saved_tensors
        encoders, batch, steps, dim = x.shape
        grad = gradients[0] if gradients[0].stride(3) == 1 else gradients[0].contiguous()
        grad_x = empty(x, steps, dim)
        grid = (triton.cdiv(batch * steps, BLOCK), encoders)
        parts = torch.empty(grid[0], 2, encoders, dim, device=x.device)
        launch(
            norm_backward,
            grid,
            x,
            grad,
            grad_x,
            parts,
            gain,
            table,
            *strides(x),
            *strides(grad),
            batch,
            encoders,
            DIM=dim,
            WIDTH=padded(dim),
            LAST=ctx.last,
            M=BLOCK,
        )
        grad_gain, grad_shift = parts.sum(0)
        return grad_x, grad_gain, grad_shift, None, None


def run_stack(
    stack: EncoderStack,
    inputs: Sequence[Tensor] | Tensor,
    sources: Sequence[Tensor] | None,
    rng: DropoutRNG | None,
    key_ranges: Sequence[Tensor] | None = None,
) -> Tensor:
    """The stack's output [E, B, T, d] (steps past an encoder's length are undefined), or [E, B, 1, d] of last steps.

    Args:
        inputs: [B, T, d] of each encoder; or one [2 E, B, T, d / 2], whose pairs lie side by side in the channels.
        sources: [B, Tk, d] of each encoder; None for self-attention.
        key_ranges: (begin, end) of each sample's unpadded key frames, [B, 2] of each encoder; None: all are. The
            last of them is the last step.
    """
    plan, table = stack.plan, stack.tables["table"]
    keys = {} if rng is None else plan.dropout_keys(rng, sources=sources is not None)
    x = _embed(stack, inputs, 0, keys.get("embed"))
    source = None if sources is None else _embed(stack, sources, 1, keys.get("source"))
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else torch.float32
    ranges = None if key_ranges is None else torch.stack(list(key_ranges)).to(torch.int32)  # [E, B, 2]
    for level, weights in enumerate(stack.layers):
        last = plan.last_step and level == plan.levels - 1
        attention = AttentionLaunch(
            stack.tables["shape"],
            stack.tables["scales"],
            keys.get(f"attention{level}"),
            ranges,
            heads=plan.heads,
            last_step=last,
        )
        own = {kind: keys[f"{kind}{level}"] for kind in ("res", "relu", "last") if f"{kind}{level}" in keys}
        call = LayerCall(
            table=table,
            attention=attention,
            last=last,
            dtype=dtype,
            keys=own,
            res_rate=plan.res_rate,
            relu_rate=plan.relu_rate,
        )
        x = FusedLayer.apply(x, source, call, *weights)
    return FusedNorm.apply(x, stack.norm_weight, stack.norm_bias, table, plan.last_step)


def _embed(stack: EncoderStack, inputs: Sequence[Tensor] | Tensor, side: int, keys: Tensor | None) -> Tensor:
    plan = stack.plan
    lengths = plan.keys if side else plan.queries
    readers: tuple[int, ...] = ()
    if isinstance(inputs, Tensor):
        tensors, parts = [inputs], 2
    else:
        tensors = list({id(x): x for x in inputs}.values())
        readers, parts = tuple(next(i for i, x in enumerate(tensors) if x is own) for own in inputs), 0
    if len(tensors) > 3:
        tensors, readers, parts = [torch.stack([_lengthened(x, max(lengths)) for x in inputs])], (), 1
    call = EmbedCall(
        table=stack.tables["table"],
        positions=stack.tables["positions"],
        side=side,
        norm=side == 1,
        steps=max(lengths),
        rate=plan.embed_rate,
        keys=keys,
        readers=readers,
        parts=parts,
    )
    return FusedEmbed.apply(call, *tensors)


def _lengthened(x: Tensor, length: int) -> Tensor:
    """x [B, T, d] padded to [B, length, d]."""
    return F.pad(x, (0, 0, 0, length - x.shape[1]))
