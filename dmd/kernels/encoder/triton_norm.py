"""The layer norm after the last layer of a stack of encoders, as one Triton launch each way."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks, padded
from dmd.kernels.common.launching import dense_channels, launch, named_strides
from dmd.kernels.common.rows import empty_rows
from dmd.kernels.common.triton_rows import (
    QUERIES,
    count_rows,
    load_slots,
    locate_rows,
    normalised,
    normalised_backward,
    place_rows,
    store_slots,
)

BLOCK = 32
"""Rows of a program."""


@triton.jit
def norm(
    x_ptr,  # rows [E, B, T, S], float32
    out_ptr,  # rows [E, B, T, S], float32, written
    gain_ptr,  # [E, d]
    shift_ptr,  # [E, d]
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    batch,  # B
    steps,  # T
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
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
    at = place_rows(e, sample, step, batch, steps, ROW=SLOT)
    normed, _ = normalised(load_slots(x_ptr, at, row < count, channel, SLOT=SLOT), channel, DIM=DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    store_slots(out_ptr, normed * gain[None, :] + shift[None, :], at, row < count, channel, SLOT=SLOT)


@triton.jit
def norm_backward(
    x_ptr,  # rows [E, B, T, S], float32
    grad_ptr,  # [E, B, T, d], float32, gradient of the output, as torch has it
    grad_x_ptr,  # rows [E, B, T, S], float32, written
    shares_ptr,  # [programs, 2, E, d], float32, written: each program's share of the gradients of gain and shift
    gain_ptr,  # [E, d]
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    g_e,  # elements between encoders, of the gradient of the output
    g_b,  # between samples
    g_t,  # between steps
    batch,  # B
    steps,  # T
    encoders,  # E
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
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
    at = place_rows(e, sample, step, batch, steps, ROW=SLOT)
    normed, inverse = normalised(load_slots(x_ptr, at, row < count, channel, SLOT=SLOT), channel, DIM=DIM)
    g_at = e.to(tl.int64) * g_e + (sample * g_b + step * g_t)[:, None] + channel[None, :]
    grad = tl.load(grad_ptr + g_at, (row < count)[:, None] & there[None, :], 0.0)
    gain_at = shares_ptr + (tl.program_id(0) * 2 * encoders + e) * DIM + channel
    shift_at = gain_at + encoders * DIM
    tl.store(gain_at, tl.sum(grad * normed, 0), there)
    tl.store(shift_at, tl.sum(grad, 0), there)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    grad = normalised_backward(grad * gain[None, :], normed, inverse, channel, DIM=DIM)
    store_slots(grad_x_ptr, grad, at, row < count, channel, SLOT=SLOT)


class FusedNorm(torch.autograd.Function):
    """Layer norm of rows x [E, B, T, S] by gain and shift [E, d], with `last` T is 1 whatever the lengths.

    The result [E, B, T, d] is a view of rows.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, table: Tensor, last: bool) -> Tensor:
        encoders, batch, steps, slot = x.shape
        dim = gain.shape[1]
        out = empty_rows(x, steps, slot)
        launch(
            norm,
            (num_blocks(batch * steps, BLOCK), encoders),
            x_ptr=x,
            out_ptr=out,
            gain_ptr=gain,
            shift_ptr=shift,
            table=table,
            batch=batch,
            steps=steps,
            DIM=dim,
            SLOT=slot,
            WIDTH=padded(dim),
            LAST=last,
            M=BLOCK,
        )
        ctx.save_for_backward(x, gain, table)
        ctx.last = last
        return out[..., :dim]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, table = ctx.saved_tensors
        encoders, batch, steps, slot = x.shape
        dim = gain.shape[1]
        grad = dense_channels(gradients[0])
        grad_x = empty_rows(x, steps, slot)
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
            **named_strides("g", grad),
            batch=batch,
            steps=steps,
            encoders=encoders,
            DIM=dim,
            SLOT=slot,
            WIDTH=padded(dim),
            LAST=ctx.last,
            M=BLOCK,
        )
        grad_gain, grad_shift = shares.sum(0)
        return grad_x, grad_gain, grad_shift, None, None
