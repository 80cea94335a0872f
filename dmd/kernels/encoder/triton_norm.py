"""The layer norm after the last layer of a stack of encoders, as one Triton launch each way."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks, padded
from dmd.kernels.common.launching import dense_channels, launch, named_strides
from dmd.kernels.common.triton_rows import QUERIES, count_rows, locate_rows, normalised, normalised_backward

BLOCK = 32
"""Rows of a program."""


@triton.jit
def norm(
    x_ptr,  # [E, B, T, d], float32
    out_ptr,  # [E, B, T, d], float32, written; with the strides of x
    gain_ptr,  # [E, d]
    shift_ptr,  # [E, d]
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    x_e,  # elements between encoders, of x
    x_b,  # between samples
    x_t,  # between steps
    batch,  # B
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    LAST: tl.constexpr,  # each sample has one row, that of its last step
    M: tl.constexpr,  # rows of a program
):
    """Layer norm of every encoder; a program per block of its rows."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE=QUERIES, LAST=LAST)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, SIDE=QUERIES, LAST=LAST)
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    mask = (row < count)[:, None] & there[None, :]
    at = e.to(tl.int64) * x_e + (sample * x_b + step * x_t)[:, None] + channel[None, :]
    normed, _ = normalised(tl.load(x_ptr + at, mask, 0.0), channel, DIM=DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    tl.store(out_ptr + at, normed * gain[None, :] + shift[None, :], mask)


@triton.jit
def norm_backward(
    x_ptr,  # [E, B, T, d], float32
    grad_ptr,  # [E, B, T, d], float32, gradient of the output
    grad_x_ptr,  # [E, B, T, d], float32, written; with the strides of x
    shares_ptr,  # [programs, 2, E, d], float32, written: each program's share of the gradients of gain and shift
    gain_ptr,  # [E, d]
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    x_e,  # elements between encoders, of x
    x_b,  # between samples
    x_t,  # between steps
    g_e,  # elements between encoders, of the gradient of the output
    g_b,  # between samples
    g_t,  # between steps
    batch,  # B
    encoders,  # E
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    LAST: tl.constexpr,  # each sample has one row, that of its last step
    M: tl.constexpr,  # rows of a program
):
    """Gradient of x, and shares of those of gain and shift; a program per block of an encoder's rows."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE=QUERIES, LAST=LAST)
    sample, step = locate_rows(row, table, e, SIDE=QUERIES, LAST=LAST)
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    mask = (row < count)[:, None] & there[None, :]
    at = e.to(tl.int64) * x_e + (sample * x_b + step * x_t)[:, None] + channel[None, :]
    normed, inverse = normalised(tl.load(x_ptr + at, mask, 0.0), channel, DIM=DIM)
    g_at = e.to(tl.int64) * g_e + (sample * g_b + step * g_t)[:, None] + channel[None, :]
    grad = tl.load(grad_ptr + g_at, mask, 0.0)
    gain_at = shares_ptr + (tl.program_id(0) * 2 * encoders + e) * DIM + channel
    shift_at = gain_at + encoders * DIM
    tl.store(gain_at, tl.sum(grad * normed, 0), there)
    tl.store(shift_at, tl.sum(grad, 0), there)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    tl.store(grad_x_ptr + at, normalised_backward(grad * gain[None, :], normed, inverse, DIM=DIM), mask)


class FusedNorm(torch.autograd.Function):
    """Layer norm of x [E, B, T, d] by gain and shift [E, d]; with `last`, T is 1 whatever the lengths."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, table: Tensor, last: bool) -> Tensor:
        encoders, batch, steps, dim = x.shape
        out = torch.empty_like(x)
        launch(
            norm,
            (num_blocks(batch * steps, BLOCK), encoders),
            x_ptr=x,
            out_ptr=out,
            gain_ptr=gain,
            shift_ptr=shift,
            table=table,
            **named_strides("x", x),
            batch=batch,
            DIM=dim,
            WIDTH=padded(dim),
            LAST=last,
            M=BLOCK,
        )
        ctx.save_for_backward(x, gain, table)
        ctx.last = last
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, table = ctx.saved_tensors
        encoders, batch, steps, dim = x.shape
        grad = dense_channels(gradients[0])
        grad_x = torch.empty_like(x)
        blocks = num_blocks(batch * steps, BLOCK)
        shares = torch.empty(blocks, 2, encoders, dim, device=x.device)
        launch(
            norm_backward,
            (blocks, encoders),
            x_ptr=x,
            grad_ptr=grad,
            grad_x_ptr=grad_x,
            shares_ptr=shares,
            gain_ptr=gain,
            table=table,
            **named_strides("x", x),
            **named_strides("g", grad),
            batch=batch,
            encoders=encoders,
            DIM=dim,
            WIDTH=padded(dim),
            LAST=ctx.last,
            M=BLOCK,
        )
        grad_gain, grad_shift = shares.sum(0)
        return grad_x, grad_gain, grad_shift, None, None
