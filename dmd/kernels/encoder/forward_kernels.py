"""Triton kernels of an encoder layer, forward: all encoders of a stage in one launch, a program per block of rows.

Rows are (sample, step) pairs of one encoder, so that encoders of different lengths leave no program idle. Activations
are [E, B, T, channels]; the residual stream is float32, products take DOT operands and accumulate in float32.
`dmd.kernels.encoder.triton_layer` launches them.
"""

import triton
import triton.language as tl

from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import count_rows, keep_factor, locate_rows, normalised, whole_steps


@triton.jit
def project(
    x_ptr,
    out_ptr,
    w_ptr,
    bias_ptr,
    gain_ptr,
    shift_ptr,
    table,
    ranges,
    x_e,
    x_b,
    x_t,
    o_e,
    o_b,
    o_t,
    batch,
    FIRST: tl.constexpr,
    COLS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SIDE: tl.constexpr,
    LAST: tl.constexpr,
    RANGED: tl.constexpr,
    NORM: tl.constexpr,
    M: tl.constexpr,
    CHUNK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Layer norm (NORM; otherwise x is normalised) and columns FIRST .. FIRST + COLS of the input projection."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE, LAST)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, SIDE, LAST)
    inside = row < count
    whole = whole_steps(sample, step, inside, table, ranges, e, batch, SIDE, LAST, RANGED)
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    x_at = x_ptr + e.to(tl.int64) * x_e + (sample * x_b + whole * x_t)[:, None] + channel[None, :]
    x = tl.load(x_at, inside[:, None] & there[None, :], 0.0).to(tl.float32)
    if NORM:
        x, _ = normalised(x, channel, DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    y = (x * gain[None, :] + shift[None, :]).to(DOT)
    o_at = out_ptr + e.to(tl.int64) * o_e + (sample * o_b + step * o_t)[:, None]
    for begin in range(0, COLS, CHUNK):
        col = begin + tl.arange(0, CHUNK)
        w_at = w_ptr + (e * 3 * DIM + FIRST + col)[None, :] * DIM + channel[:, None]
        w = tl.load(w_at, (col < COLS)[None, :] & there[:, None], 0.0).to(DOT)
        bias = tl.load(bias_ptr + e * 3 * DIM + FIRST + col, col < COLS, 0.0)
        out = product(y, w, PRECISION) + bias[None, :]
        tl.store(o_at + col[None, :], out.to(out_ptr.dtype.element_ty), inside[:, None] & (col < COLS)[None, :])


@triton.jit
def residual_mlp(
    mixed_ptr,
    x_ptr,
    middle_ptr,
    out_ptr,
    wo_ptr,
    bo_ptr,
    gain_ptr,
    shift_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    b2_ptr,
    table,
    ranges,
    res_keys,
    relu_keys,
    last_keys,
    x_e,
    x_b,
    x_t,
    m_e,
    m_b,
    m_t,
    batch,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
    RANGED: tl.constexpr,
    GHOST: tl.constexpr,
    RES: tl.constexpr,
    RES_THRESHOLD: tl.constexpr,
    RES_SCALE: tl.constexpr,
    RELU: tl.constexpr,
    RELU_THRESHOLD: tl.constexpr,
    RELU_SCALE: tl.constexpr,
    M: tl.constexpr,
    CHUNK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """middle = x + dropout(out projection); out = middle + dropout(MLP(layer norm(middle)))."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, 0, LAST)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, 0, LAST)
    inside = row < count
    whole = whole_steps(sample, step, inside, table, ranges, e, batch, 0, LAST, RANGED)
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    mask = inside[:, None] & there[None, :]
    at = e.to(tl.int64) * m_e + (sample * m_b + step * m_t)[:, None] + channel[None, :]
    branch = tl.zeros([M, WIDTH], tl.float32) + tl.load(bo_ptr + e * DIM + channel, there, 0.0)[None, :]
    for begin in range(0, DIM, CHUNK):
        col = begin + tl.arange(0, CHUNK)
        mixed_at = e.to(tl.int64) * m_e + (sample * m_b + step * m_t)[:, None] + col[None, :]
        mixed = tl.load(mixed_ptr + mixed_at, inside[:, None] & (col < DIM)[None, :], 0.0).to(DOT)
        wo_at = wo_ptr + (e * DIM + channel)[None, :] * DIM + col[:, None]
        wo = tl.load(wo_at, (col < DIM)[:, None] & there[None, :], 0.0).to(DOT)
        branch += product(mixed, wo, PRECISION)
    if RES:
        branch *= keep_factor(
            res_keys, table, e, sample, step, channel, batch, inside, 0, LAST, DIM, GHOST, RES_THRESHOLD, RES_SCALE
        )
    x_at = x_ptr + e.to(tl.int64) * x_e + (sample * x_b + whole * x_t)[:, None] + channel[None, :]
    middle = tl.load(x_at, mask, 0.0) + branch
    tl.store(middle_ptr + at, middle, mask)
    unit, _ = normalised(tl.where(mask, middle, 0.0), channel, DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    y = (unit * gain[None, :] + shift[None, :]).to(DOT)
    branch = tl.zeros([M, WIDTH], tl.float32) + tl.load(b2_ptr + e * DIM + channel, there, 0.0)[None, :]
    for begin in range(0, 4 * DIM, CHUNK):
        unit_no = begin + tl.arange(0, CHUNK)
        real = unit_no < 4 * DIM
        w1_at = w1_ptr + (e * 4 * DIM + unit_no)[None, :] * DIM + channel[:, None]
        w1 = tl.load(w1_at, real[None, :] & there[:, None], 0.0).to(DOT)
        hidden = product(y, w1, PRECISION) + tl.load(b1_ptr + e * 4 * DIM + unit_no, real, 0.0)[None, :]
        hidden = tl.maximum(hidden, 0.0)
        if RELU:
            hidden *= keep_factor(
                relu_keys,
                table,
                e,
                sample,
                step,
                unit_no,
                batch,
                inside,
                0,
                LAST,
                4 * DIM,
                GHOST,
                RELU_THRESHOLD,
                RELU_SCALE,
            )
        w2_at = w2_ptr + (e * DIM + channel)[None, :] * (4 * DIM) + unit_no[:, None]
        w2 = tl.load(w2_at, real[:, None] & there[None, :], 0.0).to(DOT)
        branch += product(hidden.to(DOT), w2, PRECISION)
    if RES:
        branch *= keep_factor(
            last_keys, table, e, sample, step, channel, batch, inside, 0, LAST, DIM, GHOST, RES_THRESHOLD, RES_SCALE
        )
    tl.store(out_ptr + at, middle + branch, mask)
