"""Triton kernels at both ends of a stack of encoders: the positioned, dropped out input, and the last layer norm.

An embedding's encoder e reads one of up to three tensors [B, T, d], number `(chosen >> 2 e) & 3` (PARTS is 0); or its
own PARTS of one tensor [PARTS E, B, T, d / PARTS], side by side.
"""

import triton
import triton.language as tl

from dmd.kernels.common.triton_rows import count_rows, keep_factor, locate_rows, normalised, normalised_backward


@triton.jit
def _read(
    a_ptr,
    b_ptr,
    c_ptr,
    e,
    sample,
    step,
    inside,
    channel,
    chosen,
    a_e,
    a_b,
    a_t,
    b_b,
    b_t,
    c_b,
    c_t,
    PARTS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
):
    """An encoder's own input rows [M, WIDTH], float32."""
    mask = inside[:, None] & (channel < DIM)[None, :]
    x = tl.zeros([M, WIDTH], tl.float32)
    if PARTS > 0:
        width: tl.constexpr = DIM // PARTS
        part = (PARTS * e + channel // width).to(tl.int64) * a_e + channel % width
        x = tl.load(a_ptr + (sample * a_b + step * a_t)[:, None] + part[None, :], mask, 0.0).to(tl.float32)
    else:
        tensor = (chosen >> (2 * e)) & 3
        if tensor == 0:
            x = tl.load(a_ptr + (sample * a_b + step * a_t)[:, None] + channel[None, :], mask, 0.0).to(tl.float32)
        elif tensor == 1:
            x = tl.load(b_ptr + (sample * b_b + step * b_t)[:, None] + channel[None, :], mask, 0.0).to(tl.float32)
        else:
            x = tl.load(c_ptr + (sample * c_b + step * c_t)[:, None] + channel[None, :], mask, 0.0).to(tl.float32)
    return x


@triton.jit
def _positioned(x, positions, step, inside, channel, factor, DIM: tl.constexpr):
    """The scaled input, with its position where channel 0 is not zero."""
    lead = tl.sum(tl.where(channel[None, :] == 0, x, 0.0), 1)
    at = positions + step[:, None] * DIM + channel[None, :]
    position = tl.load(at, inside[:, None] & (channel < DIM)[None, :], 0.0)
    return x * factor + tl.where((lead != 0)[:, None], position, 0.0)


@triton.jit
def embed(
    a_ptr,
    b_ptr,
    c_ptr,
    out_ptr,
    positions,
    table,
    keys,
    chosen,
    factor,
    a_e,
    a_b,
    a_t,
    b_b,
    b_t,
    c_b,
    c_t,
    o_e,
    o_b,
    o_t,
    batch,
    PARTS: tl.constexpr,
    SIDE: tl.constexpr,
    NORM: tl.constexpr,
    DROP: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    GHOST: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
):
    """dropout(factor x + position) of every encoder [E, B, T, d]; with NORM, normalised."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE, False)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, SIDE, False)
    inside = row < count
    channel = tl.arange(0, WIDTH)
    x = _read(
        a_ptr,
        b_ptr,
        c_ptr,
        e,
        sample,
        step,
        inside,
        channel,
        chosen,
        a_e,
        a_b,
        a_t,
        b_b,
        b_t,
        c_b,
        c_t,
        PARTS,
        DIM,
        WIDTH,
        M,
    )
    out = _positioned(x, positions, step, inside, channel, factor, DIM)
    if DROP:
        out *= keep_factor(
            keys, table, e, sample, step, channel, batch, inside, SIDE, False, DIM, GHOST, THRESHOLD, SCALE
        )
    if NORM:
        out, _ = normalised(out, channel, DIM)
    o_at = out_ptr + e.to(tl.int64) * o_e + (sample * o_b + step * o_t)[:, None] + channel[None, :]
    tl.store(o_at, out, inside[:, None] & (channel < DIM)[None, :])


@triton.jit
def _write(ptr, values, row, channel, mask):
    tl.store(ptr + row[:, None] + channel[None, :], values.to(ptr.dtype.element_ty), mask)


@triton.jit
def embed_backward(
    a_ptr,
    b_ptr,
    c_ptr,
    grad_ptr,
    grad_a,
    grad_b,
    grad_c,
    positions,
    table,
    keys,
    chosen,
    factor,
    a_e,
    a_b,
    a_t,
    b_b,
    b_t,
    c_b,
    c_t,
    o_e,
    o_b,
    o_t,
    ga_e,
    ga_b,
    ga_t,
    gb_b,
    gb_t,
    gc_b,
    gc_t,
    batch,
    encoders,
    PARTS: tl.constexpr,
    SIDE: tl.constexpr,
    NORM: tl.constexpr,
    DROP: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    GHOST: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
):
    """Gradient of each input tensor, over the encoders that read it; a program per block of an input's rows."""
    tensor = tl.program_id(1)
    first = tensor
    last = tensor + 1
    reader = tensor
    if PARTS == 0:
        first = 0
        last = encoders
        for e in range(0, encoders):
            reader = tl.where(((chosen >> (2 * e)) & 3) == tensor, e, reader)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, reader, batch, SIDE, False)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, reader, SIDE, False)
    inside = row < count
    channel = tl.arange(0, WIDTH)
    mask = inside[:, None] & (channel < DIM)[None, :]
    x = tl.zeros([M, WIDTH], tl.float32)
    if NORM:
        x = _read(
            a_ptr,
            b_ptr,
            c_ptr,
            reader,
            sample,
            step,
            inside,
            channel,
            chosen,
            a_e,
            a_b,
            a_t,
            b_b,
            b_t,
            c_b,
            c_t,
            PARTS,
            DIM,
            WIDTH,
            M,
        )
        x = _positioned(x, positions, step, inside, channel, factor, DIM)
    total = tl.zeros([M, WIDTH], tl.float32)
    for e in range(first, last):
        mine = True
        if PARTS == 0:
            mine = ((chosen >> (2 * e)) & 3) == tensor
        if mine:
            at = grad_ptr + tl.cast(e, tl.int64) * o_e + (sample * o_b + step * o_t)[:, None] + channel[None, :]
            grad = tl.load(at, mask, 0.0)
            keep = tl.full([M, WIDTH], 1.0, tl.float32)
            if DROP:
                keep = keep_factor(
                    keys, table, e, sample, step, channel, batch, inside, SIDE, False, DIM, GHOST, THRESHOLD, SCALE
                )
            if NORM:
                unit, inverse = normalised(x * keep, channel, DIM)
                grad = normalised_backward(grad, unit, inverse, DIM)
            total += grad * keep * factor
    if PARTS > 0:
        width: tl.constexpr = DIM // PARTS
        part = (PARTS * tensor + channel // width).to(tl.int64) * ga_e + channel % width
        _write(grad_a, total, sample * ga_b + step * ga_t, part, mask)
    elif tensor == 0:
        _write(grad_a, total, sample * ga_b + step * ga_t, channel, mask)
    elif tensor == 1:
        _write(grad_b, total, sample * gb_b + step * gb_t, channel, mask)
    else:
        _write(grad_c, total, sample * gc_b + step * gc_t, channel, mask)


@triton.jit
def norm(
    x_ptr,
    out_ptr,
    gain_ptr,
    shift_ptr,
    table,
    x_e,
    x_b,
    x_t,
    batch,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    M: tl.constexpr,
):
    """Layer norm of every encoder's output [E, B, T, d]."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, 0, LAST)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, 0, LAST)
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    mask = (row < count)[:, None] & there[None, :]
    at = e.to(tl.int64) * x_e + (sample * x_b + step * x_t)[:, None] + channel[None, :]
    unit, _ = normalised(tl.load(x_ptr + at, mask, 0.0), channel, DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    tl.store(out_ptr + at, unit * gain[None, :] + shift[None, :], mask)


@triton.jit
def norm_backward(
    x_ptr,
    grad_ptr,
    grad_x_ptr,
    parts_ptr,
    gain_ptr,
    table,
    x_e,
    x_b,
    x_t,
    g_e,
    g_b,
    g_t,
    batch,
    encoders,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    M: tl.constexpr,
):
    """Gradient of x, and each program's share of those of gain and shift: `parts` [programs, 2, E, d]."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, 0, LAST)
    sample, step = locate_rows(row, table, e, 0, LAST)
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    mask = (row < count)[:, None] & there[None, :]
    at = e.to(tl.int64) * x_e + (sample * x_b + step * x_t)[:, None] + channel[None, :]
    unit, inverse = normalised(tl.load(x_ptr + at, mask, 0.0), channel, DIM)
    g_at = e.to(tl.int64) * g_e + (sample * g_b + step * g_t)[:, None] + channel[None, :]
    grad = tl.load(grad_ptr + g_at, mask, 0.0)
    part = parts_ptr + (tl.program_id(0) * 2 * encoders + e) * DIM + channel
    tl.store(part, tl.sum(grad * unit, 0), there)
    tl.store(part + encoders * DIM, tl.sum(grad, 0), there)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    tl.store(grad_x_ptr + at, normalised_backward(grad * gain[None, :], unit, inverse, DIM), mask)
