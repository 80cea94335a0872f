"""Dropout as one Triton launch each way; the mask of `rng` is drawn again in backward, never kept."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.launching import launch
from dmd.kernels.common.triton_rows import KEY_WORDS, draw_keep_mask
from dmd.kernels.dropout.rng import DropoutRNG, keep_scale, threshold

BLOCK = 2048
"""Elements of a program."""


@triton.jit
def _drop(
    x_ptr,  # [outer, batch, inner], float32 or bfloat16
    out_ptr,  # [outer, batch, inner], written
    keys,  # [batch, 2], int32, the dropout's keys
    count,  # elements of x
    batch,  # samples
    inner,  # elements of the axes after that of the samples
    threshold,  # the rate in 1/65536
    scale,  # what kept elements are multiplied by
    BLOCK: tl.constexpr,  # elements of a program
):
    """Dropout of x; elements are numbered inside each sample."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(x_ptr + at, inside, 0.0).to(tl.float32)
    sample = at // inner % batch
    word = at // inner // batch * ((inner + 1) // 2) + at % inner // 2
    key_at = keys + KEY_WORDS * sample
    low = tl.load(key_at, inside, 0)
    high = tl.load(key_at + 1, inside, 0)
    out = tl.where(draw_keep_mask(word, at % inner % 2, low, high, threshold), x * scale, 0.0)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), inside)


def _launch(x: Tensor, keys: Tensor, *, batch_dim: int, rate: float) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    count, inner = x.numel(), math.prod(x.shape[batch_dim + 1 :])
    assert count < 2**31 - BLOCK
    launch(
        _drop,
        (num_blocks(count, BLOCK),),
        x_ptr=x,
        out_ptr=out,
        keys=keys,
        count=count,
        batch=x.shape[batch_dim],
        inner=inner,
        threshold=threshold(rate),
        scale=keep_scale(rate),
        BLOCK=BLOCK,
    )
    return out


class FusedDropout(torch.autograd.Function):
    """Keeps the keys alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, rng: DropoutRNG, batch_dim: int) -> Tensor:
        keys = rng.table([(rng.next_call_site(),)])
        ctx.save_for_backward(keys)
        ctx.how = {"batch_dim": batch_dim, "rate": rate}
        return _launch(x, keys, **ctx.how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (keys,) = ctx.saved_tensors
        return _launch(gradients[0], keys, **ctx.how), None, None, None
