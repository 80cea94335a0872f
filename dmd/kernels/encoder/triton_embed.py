"""The input of a stack of encoders, scaled, positioned and dropped out, as one Triton launch each way.

Encoder e reads one of up to three inputs [B, T, d], number `readers[e]`, where PARTS is 0. Otherwise it reads its own
PARTS parts of one input [PARTS E, B, T, d / PARTS], side by side in the channels.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks, padded, slot
from dmd.kernels.common.launching import dense_channels, launch
from dmd.kernels.common.rows import empty_rows
from dmd.kernels.common.triton_rows import (
    count_rows,
    keep_factor,
    load_slots,
    locate_rows,
    normalised,
    normalised_backward,
    place_rows,
    store_slots,
)
from dmd.kernels.dropout.rng import keep_scale, threshold

MAX_INPUTS = 3
"""Inputs that encoders choose from."""
BLOCK = 32
"""Rows of a program."""


@triton.jit
def _load_rows(
    ptr,  # [B, T, d]
    row_at,  # [M], places of rows
    channel,  # [WIDTH]
    mask,  # [M, WIDTH]
):
    """Rows [M, WIDTH], float32."""
    return tl.load(ptr + row_at[:, None] + channel[None, :], mask, 0.0).to(tl.float32)


@triton.jit
def _read(
    x0_ptr,  # [B, T, d], or [PARTS E, B, T, d / PARTS]; float32 or bfloat16
    x1_ptr,  # [B, T, d]
    x2_ptr,  # [B, T, d]
    e,  # number of the encoder
    sample,  # [M], of rows
    step,  # [M], of rows
    inside,  # [M], which rows there are
    channel,  # [WIDTH]
    readers,  # [E], int32, the input that each encoder reads
    x0_e,  # elements between encoders, of input 0
    x0_b,  # between samples
    x0_t,  # between steps
    x1_b,  # between samples, of input 1
    x1_t,  # between steps
    x2_b,  # between samples, of input 2
    x2_t,  # between steps
    PARTS: tl.constexpr,  # of its input that an encoder reads; 0: it reads a whole input
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    M: tl.constexpr,  # rows of a program
):
    """An encoder's own input rows [M, WIDTH], float32."""
    mask = inside[:, None] & (channel < DIM)[None, :]
    x = tl.zeros([M, WIDTH], tl.float32)
    if PARTS > 0:
        width: tl.constexpr = DIM // PARTS
        part_at = (PARTS * e + channel // width).to(tl.int64) * x0_e + channel % width
        x = _load_rows(x0_ptr, sample * x0_b + step * x0_t, part_at, mask)
    else:
        number = tl.load(readers + e)
        if number == 0:
            x = _load_rows(x0_ptr, sample * x0_b + step * x0_t, channel, mask)
        elif number == 1:
            x = _load_rows(x1_ptr, sample * x1_b + step * x1_t, channel, mask)
        else:
            x = _load_rows(x2_ptr, sample * x2_b + step * x2_t, channel, mask)
    return x


@triton.jit
def _add_positions(
    x,  # [M, WIDTH], input rows
    positions,  # [positions, d], float32
    step,  # [M], of rows
    inside,  # [M], which rows there are
    channel,  # [WIDTH]
    factor,  # what x is multiplied by
    DIM: tl.constexpr,  # d
):
    """The scaled input, with its position where channel 0 is not zero, [M, WIDTH]."""
    lead = tl.sum(tl.where(channel[None, :] == 0, x, 0.0), 1)
    at = positions + step[:, None] * DIM + channel[None, :]
    position = tl.load(at, inside[:, None] & (channel < DIM)[None, :], 0.0)
    return x * factor + tl.where((lead != 0)[:, None], position, 0.0)


@triton.jit
def embed(
    x0_ptr,  # [B, T, d], or [PARTS E, B, T, d / PARTS]; float32 or bfloat16
    x1_ptr,  # [B, T, d]
    x2_ptr,  # [B, T, d]
    out_ptr,  # rows [E, B, T, S], float32, written
    positions,  # [positions, d], float32
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    keys,  # [E, B, 2], int32, the dropout's keys
    readers,  # [E], int32, the input that each encoder reads; only where PARTS is 0
    factor,  # what inputs are multiplied by
    x0_e,  # elements between encoders, of input 0
    x0_b,  # between samples
    x0_t,  # between steps
    x1_b,  # between samples, of input 1
    x1_t,  # between steps
    x2_b,  # between samples, of input 2
    x2_t,  # between steps
    batch,  # B
    steps,  # T of the output
    PARTS: tl.constexpr,  # of its input that an encoder reads; 0: it reads a whole input
    SIDE: tl.constexpr,  # QUERIES or KEYS: whose lengths the inputs have
    NORM: tl.constexpr,  # whether the output is normalised
    DROP: tl.constexpr,  # whether elements are dropped
    THRESHOLD: tl.constexpr,  # the rate in 1/65536
    SCALE: tl.constexpr,  # what kept elements are multiplied by
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
    WIDTH: tl.constexpr,  # d, padded to a power of two
    M: tl.constexpr,  # rows of a program
):
    """dropout(factor x + position) of every encoder; with NORM, normalised. A program per block of its rows."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE=SIDE, LAST=False)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, SIDE=SIDE, LAST=False)
    inside = row < count
    channel = tl.arange(0, WIDTH)
    x = _read(
        x0_ptr,
        x1_ptr,
        x2_ptr,
        e,
        sample,
        step,
        inside,
        channel,
        readers,
        x0_e,
        x0_b,
        x0_t,
        x1_b,
        x1_t,
        x2_b,
        x2_t,
        PARTS=PARTS,
        DIM=DIM,
        WIDTH=WIDTH,
        M=M,
    )
    out = _add_positions(x, positions, step, inside, channel, factor, DIM=DIM)
    if DROP:
        out *= keep_factor(
            keys,
            table,
            e,
            sample,
            step,
            channel,
            batch,
            inside,
            SIDE=SIDE,
            LAST=False,
            COLS=DIM,
            THRESHOLD=THRESHOLD,
            SCALE=SCALE,
        )
    if NORM:
        out, _ = normalised(out, channel, DIM=DIM)
    store_slots(out_ptr, out, place_rows(e, sample, step, batch, steps, ROW=SLOT), inside, channel, SLOT=SLOT)


@triton.jit
def _store_rows(
    ptr,  # [B, T, d], written
    values,  # [M, WIDTH], float32
    row_at,  # [M], places of rows
    channel,  # [WIDTH]
    mask,  # [M, WIDTH]
):
    tl.store(ptr + row_at[:, None] + channel[None, :], values.to(ptr.dtype.element_ty), mask)


@triton.jit
def embed_backward(
    x0_ptr,  # [B, T, d], or [PARTS E, B, T, d / PARTS]; float32 or bfloat16
    x1_ptr,  # [B, T, d]
    x2_ptr,  # [B, T, d]
    grad_ptr,  # rows [E, B, T, S], float32, gradient of the output
    g0_ptr,  # like x0, its gradient, written
    g1_ptr,  # like x1, its gradient, written
    g2_ptr,  # like x2, its gradient, written
    positions,  # [positions, d], float32
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    keys,  # [E, B, 2], int32, the dropout's keys
    readers,  # [E], int32, the input that each encoder reads; only where PARTS is 0
    factor,  # what inputs are multiplied by
    x0_e,  # elements between encoders, of input 0
    x0_b,  # between samples
    x0_t,  # between steps
    x1_b,  # between samples, of input 1
    x1_t,  # between steps
    x2_b,  # between samples, of input 2
    x2_t,  # between steps
    g0_e,  # elements between encoders, of the gradient of input 0
    g0_b,  # between samples
    g0_t,  # between steps
    g1_b,  # between samples, of the gradient of input 1
    g1_t,  # between steps
    g2_b,  # between samples, of the gradient of input 2
    g2_t,  # between steps
    batch,  # B
    steps,  # T of the output
    encoders,  # E
    PARTS: tl.constexpr,  # of its input that an encoder reads; 0: it reads a whole input
    SIDE: tl.constexpr,  # QUERIES or KEYS: whose lengths the inputs have
    NORM: tl.constexpr,  # whether the output is normalised
    DROP: tl.constexpr,  # whether elements are dropped
    THRESHOLD: tl.constexpr,  # the rate in 1/65536
    SCALE: tl.constexpr,  # what kept elements are multiplied by
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
    WIDTH: tl.constexpr,  # d, padded to a power of two
    M: tl.constexpr,  # rows of a program
):
    """Gradient of each input, over the encoders that read it; a program per block of an input's rows.

    With PARTS, an input is the parts of one encoder.
    """
    number = tl.program_id(1)
    first = number
    end = number + 1
    reader = number  # an encoder that reads the input: all that do have its length
    if PARTS == 0:
        first = 0
        end = encoders
        for e in range(0, encoders):
            reader = tl.where(tl.load(readers + e) == number, e, reader)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, reader, batch, SIDE=SIDE, LAST=False)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, reader, SIDE=SIDE, LAST=False)
    inside = row < count
    channel = tl.arange(0, WIDTH)
    mask = inside[:, None] & (channel < DIM)[None, :]
    x = tl.zeros([M, WIDTH], tl.float32)
    if NORM:
        x = _read(
            x0_ptr,
            x1_ptr,
            x2_ptr,
            reader,
            sample,
            step,
            inside,
            channel,
            readers,
            x0_e,
            x0_b,
            x0_t,
            x1_b,
            x1_t,
            x2_b,
            x2_t,
            PARTS=PARTS,
            DIM=DIM,
            WIDTH=WIDTH,
            M=M,
        )
        x = _add_positions(x, positions, step, inside, channel, factor, DIM=DIM)
    total = tl.zeros([M, WIDTH], tl.float32)
    for e in range(first, end):
        mine = True
        if PARTS == 0:
            mine = tl.load(readers + e) == number
        if mine:
            at = place_rows(e, sample, step, batch, steps, ROW=SLOT)
            grad = load_slots(grad_ptr, at, inside, channel, SLOT=SLOT)
            keep = tl.full([M, WIDTH], 1.0, tl.float32)
            if DROP:
                keep = keep_factor(
                    keys,
                    table,
                    e,
                    sample,
                    step,
                    channel,
                    batch,
                    inside,
                    SIDE=SIDE,
                    LAST=False,
                    COLS=DIM,
                    THRESHOLD=THRESHOLD,
                    SCALE=SCALE,
                )
            if NORM:
                normed, inverse = normalised(x * keep, channel, DIM=DIM)
                grad = normalised_backward(grad, normed, inverse, channel, DIM=DIM)
            total += grad * keep * factor
    if PARTS > 0:
        width: tl.constexpr = DIM // PARTS
        part_at = (PARTS * number + channel // width).to(tl.int64) * g0_e + channel % width
        _store_rows(g0_ptr, total, sample * g0_b + step * g0_t, part_at, mask)
    elif number == 0:
        _store_rows(g0_ptr, total, sample * g0_b + step * g0_t, channel, mask)
    elif number == 1:
        _store_rows(g1_ptr, total, sample * g1_b + step * g1_t, channel, mask)
    else:
        _store_rows(g2_ptr, total, sample * g2_b + step * g2_t, channel, mask)


@dataclass(frozen=True, kw_only=True)
class EmbedCall:
    """What an embedding is, beside its tensors. Either `readers` or `parts` say which input an encoder reads."""

    table: Tensor
    """[E, 5], see `dmd.kernels.common.triton_rows`."""
    positions: Tensor
    """[positions, d], float32."""
    side: int
    """QUERIES or KEYS of `triton_rows`: whose lengths the inputs have."""
    norm: bool
    """Whether the output is normalised."""
    steps: int
    """Of the output: the longest length."""
    rate: float
    """Of dropout."""
    keys: Tensor | None
    """[E, B, 2] of the dropout; None: there is none."""
    readers: tuple[int, ...] = ()
    """The number of the input [B, T, d] that each encoder reads."""
    parts: int = 0
    """How many parts of the only input [parts E, B, T, d / parts] each encoder reads."""

    def arguments(self, batch: int, dim: int, device: torch.device) -> dict[str, Any]:
        """What both kernels take."""
        return {
            "positions": self.positions,
            "table": self.table,
            "keys": self.table if self.keys is None else self.keys,  # a tensor that no kernel reads
            "readers": _readers_on(device, self.readers) if self.readers else self.table,
            "factor": math.sqrt(dim),
            "batch": batch,
            "steps": self.steps,
            "PARTS": self.parts,
            "SIDE": self.side,
            "NORM": self.norm,
            "DROP": self.keys is not None,
            "THRESHOLD": threshold(self.rate),
            "SCALE": keep_scale(self.rate),
            "DIM": dim,
            "SLOT": slot(dim),
            "WIDTH": padded(dim),
            "M": BLOCK,
        }


@lru_cache(maxsize=32)
def _readers_on(device: torch.device, readers: tuple[int, ...]) -> Tensor:
    """[E] int32 in a device's memory, copied there once: a GPU waits for a copy from the host."""
    return torch.tensor(readers, dtype=torch.int32).to(device)


def _places(name: str, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
    """A kernel's arguments: three places for tensors and their strides. One without a tensor holds the first again."""
    arguments: dict[str, Any] = {f"{name}0_e": tensors[0].stride(0)}
    for number in range(MAX_INPUTS):
        x = tensors[number if number < len(tensors) else 0]
        arguments |= {f"{name}{number}_ptr": x, f"{name}{number}_b": x.stride(-3), f"{name}{number}_t": x.stride(-2)}
    return arguments


class FusedEmbed(torch.autograd.Function):
    """Up to three inputs [B, T, d], or one [parts E, B, T, d / parts] -> rows [E, B, T, S] float32."""

    @staticmethod
    def forward(ctx: Any, call: EmbedCall, *inputs: Tensor) -> Tensor:
        inputs = tuple(dense_channels(x) for x in inputs)
        dim = inputs[0].shape[-1] * max(1, call.parts)
        encoders = len(call.readers) or len(inputs[0]) // call.parts
        batch = inputs[0].shape[-3]
        like = inputs[0][:encoders] if call.parts else inputs[0].expand(encoders, -1, -1, -1)
        out = empty_rows(like, call.steps, slot(dim))
        launch(
            embed,
            (num_blocks(batch * call.steps, BLOCK), encoders),
            **_places("x", inputs),
            out_ptr=out,
            **call.arguments(batch, dim, out.device),
        )
        ctx.save_for_backward(*inputs)
        ctx.call, ctx.encoders, ctx.dim = call, encoders, dim
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        call: EmbedCall = ctx.call
        encoders, batch = ctx.encoders, inputs[0].shape[-3]
        grad = gradients[0].contiguous()
        grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs)
        launch(
            embed_backward,
            (num_blocks(batch * call.steps, BLOCK), encoders if call.parts else len(inputs)),
            **_places("x", inputs),
            grad_ptr=grad,
            **_places("g", grads),
            encoders=encoders,
            **call.arguments(batch, ctx.dim, grad.device),
        )
        return None, *grads
