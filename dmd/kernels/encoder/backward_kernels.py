"""Triton kernels of an encoder layer, backward: gradients of activations, a program per block of rows.

What is cheap to compute again is not read from memory: layer norms, hidden units and dropout masks. Nothing is added
atomically.
"""

import triton
import triton.language as tl

from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import (
    count_rows,
    keep_factor,
    locate_rows,
    normalised,
    normalised_backward,
    whole_steps,
)


@triton.jit
def _through_output(
    grad,
    wo_ptr,
    grad_mixed_ptr,
    row_at,
    inside,
    e,
    channel,
    DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store the gradient of the attention's output, from that of the output projection's result [M, WIDTH]."""
    there = channel < DIM
    for begin in range(0, DIM, CHUNK):
        col = begin + tl.arange(0, CHUNK)
        wo_at = wo_ptr + (e * DIM + channel)[:, None] * DIM + col[None, :]
        wo = tl.load(wo_at, there[:, None] & (col < DIM)[None, :], 0.0).to(DOT)  # [WIDTH, CHUNK]
        grad_mixed = product(grad, wo, PRECISION)
        mask = inside[:, None] & (col < DIM)[None, :]
        mixed_at = grad_mixed_ptr + row_at[:, None] + col[None, :]
        tl.store(mixed_at, grad_mixed.to(grad_mixed_ptr.dtype.element_ty), mask)


@triton.jit
def residual_mlp_backward(
    grad_ptr,
    middle_ptr,
    grad_middle_ptr,
    grad_mixed_ptr,
    wo_ptr,
    gain_ptr,
    shift_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    table,
    res_keys,
    relu_keys,
    last_keys,
    g_e,
    g_b,
    g_t,
    m_e,
    m_b,
    m_t,
    batch,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    LAST: tl.constexpr,
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
    """Gradients of `middle` (through both of its uses) and of the attention's output."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, 0, LAST)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, 0, LAST)
    inside = row < count
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    mask = inside[:, None] & there[None, :]
    at = e.to(tl.int64) * m_e + (sample * m_b + step * m_t)[:, None] + channel[None, :]
    g_at = e.to(tl.int64) * g_e + (sample * g_b + step * g_t)[:, None] + channel[None, :]
    grad = tl.load(grad_ptr + g_at, mask, 0.0)
    branch = grad
    if RES:
        branch *= keep_factor(
            last_keys, table, e, sample, step, channel, batch, inside, 0, LAST, DIM, GHOST, RES_THRESHOLD, RES_SCALE
        )
    unit, inverse = normalised(tl.load(middle_ptr + at, mask, 0.0), channel, DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    y = (unit * gain[None, :] + shift[None, :]).to(DOT)
    branch = branch.to(DOT)
    grad_y = tl.zeros([M, WIDTH], tl.float32)
    for begin in range(0, 4 * DIM, CHUNK):
        unit_no = begin + tl.arange(0, CHUNK)
        real = unit_no < 4 * DIM
        w1_at = w1_ptr + (e * 4 * DIM + unit_no)[:, None] * DIM + channel[None, :]
        w1 = tl.load(w1_at, real[:, None] & there[None, :], 0.0).to(DOT)  # [CHUNK, WIDTH]
        before = product(y, tl.trans(w1), PRECISION)
        before += tl.load(b1_ptr + e * 4 * DIM + unit_no, real, 0.0)[None, :]
        w2_at = w2_ptr + (e * DIM + channel)[:, None] * (4 * DIM) + unit_no[None, :]
        w2 = tl.load(w2_at, real[None, :] & there[:, None], 0.0).to(DOT)  # [WIDTH, CHUNK]
        hidden = product(branch, w2, PRECISION)
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
        hidden = tl.where(before > 0, hidden, 0.0)
        grad_y += product(hidden.to(DOT), w1, PRECISION)
    grad += normalised_backward(grad_y * gain[None, :], unit, inverse, DIM)
    tl.store(grad_middle_ptr + at, grad, mask)
    if RES:
        grad *= keep_factor(
            res_keys, table, e, sample, step, channel, batch, inside, 0, LAST, DIM, GHOST, RES_THRESHOLD, RES_SCALE
        )
    row_at = e.to(tl.int64) * m_e + sample * m_b + step * m_t
    grad = tl.where(mask, grad, 0.0).to(DOT)
    _through_output(grad, wo_ptr, grad_mixed_ptr, row_at, inside, e, channel, DIM, CHUNK, DOT, PRECISION)


@triton.jit
def _through(
    grad_y,
    grad_ptr,
    w_ptr,
    at,
    inside,
    e,
    channel,
    FIRST: tl.constexpr,
    COLS: tl.constexpr,
    DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad_y plus the gradient through columns FIRST .. FIRST + COLS of the input projection."""
    there = channel < DIM
    for begin in range(0, COLS, CHUNK):
        col = begin + tl.arange(0, CHUNK)
        grad = tl.load(grad_ptr + at[:, None] + col[None, :], inside[:, None] & (col < COLS)[None, :], 0.0)
        w_at = w_ptr + (e * 3 * DIM + FIRST + col)[:, None] * DIM + channel[None, :]
        w = tl.load(w_at, (col < COLS)[:, None] & there[None, :], 0.0).to(DOT)
        grad_y += product(grad.to(DOT), w, PRECISION)
    return grad_y


@triton.jit
def project_backward(
    q_ptr,
    kv_ptr,
    grad_middle_ptr,
    x_ptr,
    grad_ptr,
    w_ptr,
    gain_ptr,
    table,
    ranges,
    q_e,
    q_b,
    q_t,
    kv_e,
    kv_b,
    kv_t,
    m_e,
    m_b,
    m_t,
    x_e,
    x_b,
    x_t,
    g_e,
    g_b,
    g_t,
    batch,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    SIDE: tl.constexpr,
    QUERY: tl.constexpr,
    KEY: tl.constexpr,
    LAST: tl.constexpr,
    RANGED: tl.constexpr,
    M: tl.constexpr,
    CHUNK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the layer's input from those of queries (QUERY) and of keys and values (KEY).

    With QUERY the input goes through layer norm and the residual brings its own gradient. Without, it is a source that
    is normalised already. With LAST, queries and residual are of the last step alone, with RANGED
    of the last unpadded one.
    """
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE, False)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, SIDE, False)
    inside = row < count
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    mask = inside[:, None] & there[None, :]
    asked = inside
    asked_step = step
    if LAST:
        asked_step = step * 0
        last = whole_steps(sample, asked_step, inside, table, ranges, e, batch, SIDE, LAST, RANGED)
        asked = inside & (step == last)
    grad = tl.zeros([M, WIDTH], tl.float32)
    if QUERY:
        at = sample * q_b + asked_step * q_t
        grad = _through(
            grad, q_ptr + e.to(tl.int64) * q_e, w_ptr, at, asked, e, channel, 0, DIM, DIM, CHUNK, DOT, PRECISION
        )
    if KEY:
        at = sample * kv_b + step * kv_t
        grad = _through(
            grad,
            kv_ptr + e.to(tl.int64) * kv_e,
            w_ptr,
            at,
            inside,
            e,
            channel,
            DIM,
            2 * DIM,
            DIM,
            CHUNK,
            DOT,
            PRECISION,
        )
    grad *= tl.load(gain_ptr + e * DIM + channel, there, 0.0)[None, :]
    if QUERY:
        x_at = x_ptr + e.to(tl.int64) * x_e + (sample * x_b + step * x_t)[:, None] + channel[None, :]
        unit, inverse = normalised(tl.load(x_at, mask, 0.0), channel, DIM)
        grad = normalised_backward(grad, unit, inverse, DIM)
        m_at = e.to(tl.int64) * m_e + (sample * m_b + asked_step * m_t)[:, None] + channel[None, :]
        grad += tl.load(grad_middle_ptr + m_at, asked[:, None] & there[None, :], 0.0)
    g_at = grad_ptr + e.to(tl.int64) * g_e + (sample * g_b + step * g_t)[:, None] + channel[None, :]
    tl.store(g_at, grad, mask)
