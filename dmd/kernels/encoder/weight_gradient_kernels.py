"""Triton kernels of an encoder layer, backward: gradients of its weights.

Two launches sum over the rows, each of SPLITS programs over its own share of them (no atomics); the third adds the
shares up. `parts` [SPLITS, E, 12 d, d] holds, row after row, the gradients of the input projection (3 d, with respect
to the weight that the layer norm's gain is folded into), of the output projection (d), of the MLP's first layer (4 d,
folded as well) and of its second, transposed (4 d). `bias_parts` [SPLITS, E, 9 d] are those of the biases.
"""

import triton
import triton.language as tl

from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import count_rows, keep_factor, locate_rows, normalised, whole_steps


@triton.jit
def _outer(
    a_ptr,
    b_ptr,
    col,
    table,
    ranges,
    keys,
    a_b,
    a_t,
    b_b,
    b_t,
    e,
    batch,
    split,
    splits,
    COLS: tl.constexpr,
    SIDE: tl.constexpr,
    LAST: tl.constexpr,
    RANGED: tl.constexpr,
    WHOLE: tl.constexpr,
    NORM: tl.constexpr,
    DROP: tl.constexpr,
    GHOST: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    CHUNK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum over a share of the rows of a[:, col]^T b [CHUNK, WIDTH], and of a; b is normalised first with NORM."""
    channel = tl.arange(0, WIDTH)
    total = tl.zeros([CHUNK, WIDTH], tl.float32)
    bias = tl.zeros([CHUNK], tl.float32)
    count = count_rows(table, e, batch, SIDE, LAST)
    share = tl.cdiv(tl.cdiv(count, M), splits) * M
    for begin in range(split * share, tl.minimum((split + 1) * share, count), M):
        row = begin + tl.arange(0, M)
        inside = row < count
        sample, step = locate_rows(row, table, e, SIDE, LAST)
        a_at = (sample * a_b + step * a_t)[:, None] + col[None, :]
        a = tl.load(a_ptr + a_at, inside[:, None] & (col < COLS)[None, :], 0.0).to(tl.float32)
        if DROP:
            a *= keep_factor(
                keys, table, e, sample, step, col, batch, inside, SIDE, LAST, COLS, GHOST, THRESHOLD, SCALE
            )
        place = step
        if WHOLE:
            place = whole_steps(sample, step, inside, table, ranges, e, batch, SIDE, LAST, RANGED)
        b_at = (sample * b_b + place * b_t)[:, None] + channel[None, :]
        b = tl.load(b_ptr + b_at, inside[:, None] & (channel < DIM)[None, :], 0.0).to(tl.float32)
        if NORM:
            b, _ = normalised(b, channel, DIM)
        total += product(tl.trans(a.to(DOT)), b.to(DOT), PRECISION)
        bias += tl.sum(a, 0)
    return total, bias


@triton.jit
def projection_weights(
    q_ptr,
    kv_ptr,
    grad_middle_ptr,
    x_ptr,
    source_ptr,
    mixed_ptr,
    parts_ptr,
    bias_parts_ptr,
    table,
    ranges,
    res_keys,
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
    s_e,
    s_b,
    s_t,
    batch,
    splits,
    encoders,
    SELF: tl.constexpr,
    LAST: tl.constexpr,
    RANGED: tl.constexpr,
    RES: tl.constexpr,
    GHOST: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    M: tl.constexpr,
    CHUNK: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Shares of the gradients of the input and output projections; a program per CHUNK of their rows."""
    job = tl.program_id(0)
    e = tl.program_id(1)
    split = tl.program_id(2)
    far = e.to(tl.int64)
    narrow: tl.constexpr = (DIM + CHUNK - 1) // CHUNK
    wide: tl.constexpr = (2 * DIM + CHUNK - 1) // CHUNK
    if job < narrow:
        first = 0
        col = job * CHUNK + tl.arange(0, CHUNK)
        limit = DIM
        total, bias = _outer(
            q_ptr + far * q_e,
            x_ptr + far * x_e,
            col,
            table,
            ranges,
            res_keys,
            q_b,
            q_t,
            x_b,
            x_t,
            e,
            batch,
            split,
            splits,
            DIM,
            0,
            LAST,
            RANGED,
            True,
            True,
            False,
            GHOST,
            THRESHOLD,
            SCALE,
            DIM,
            WIDTH,
            M,
            CHUNK,
            DOT,
            PRECISION,
        )
    elif job < narrow + wide:
        first = DIM
        col = (job - narrow) * CHUNK + tl.arange(0, CHUNK)
        limit = 2 * DIM
        total, bias = _outer(
            kv_ptr + far * kv_e,
            source_ptr + far * s_e,
            col,
            table,
            ranges,
            res_keys,
            kv_b,
            kv_t,
            s_b,
            s_t,
            e,
            batch,
            split,
            splits,
            2 * DIM,
            1,
            False,
            RANGED,
            True,
            SELF,
            False,
            GHOST,
            THRESHOLD,
            SCALE,
            DIM,
            WIDTH,
            M,
            CHUNK,
            DOT,
            PRECISION,
        )
    else:
        first = 3 * DIM
        col = (job - narrow - wide) * CHUNK + tl.arange(0, CHUNK)
        limit = DIM
        total, bias = _outer(
            grad_middle_ptr + far * m_e,
            mixed_ptr + far * m_e,
            col,
            table,
            ranges,
            res_keys,
            m_b,
            m_t,
            m_b,
            m_t,
            e,
            batch,
            split,
            splits,
            DIM,
            0,
            LAST,
            RANGED,
            False,
            False,
            RES,
            GHOST,
            THRESHOLD,
            SCALE,
            DIM,
            WIDTH,
            M,
            CHUNK,
            DOT,
            PRECISION,
        )
    channel = tl.arange(0, WIDTH)
    row = (split * encoders + e).to(tl.int64) * (12 * DIM) + first + col
    real = col < limit
    tl.store(parts_ptr + row[:, None] * DIM + channel[None, :], total, real[:, None] & (channel < DIM)[None, :])
    tl.store(bias_parts_ptr + (split * encoders + e) * (9 * DIM) + first + col, bias, real)


@triton.jit
def _mlp_tiles(w1_ptr, w2_ptr, e, unit_no, channel, DIM: tl.constexpr, DOT: tl.constexpr):
    """Both weights of some hidden units, [WIDTH, CHUNK] each."""
    mask = (channel < DIM)[:, None] & (unit_no < 4 * DIM)[None, :]
    w1 = tl.load(w1_ptr + (e * 4 * DIM + unit_no)[None, :] * DIM + channel[:, None], mask, 0.0)
    w2 = tl.load(w2_ptr + (e * DIM + channel)[:, None] * (4 * DIM) + unit_no[None, :], mask, 0.0)
    return w1.to(DOT), w2.to(DOT)


@triton.jit
def mlp_weights(
    grad_ptr,
    middle_ptr,
    parts_ptr,
    bias_parts_ptr,
    gain_ptr,
    shift_ptr,
    w1_ptr,
    b1_ptr,
    w2_ptr,
    table,
    relu_keys,
    last_keys,
    g_e,
    g_b,
    g_t,
    m_e,
    m_b,
    m_t,
    batch,
    splits,
    encoders,
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
    """Shares of the gradients of both layers of the MLP; a program per CHUNK of hidden units."""
    e = tl.program_id(1)
    split = tl.program_id(2)
    unit_no = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    real = unit_no < 4 * DIM
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    w1, w2 = _mlp_tiles(w1_ptr, w2_ptr, e, unit_no, channel, DIM, DOT)
    b1 = tl.load(b1_ptr + e * 4 * DIM + unit_no, real, 0.0)
    first = tl.zeros([CHUNK, WIDTH], tl.float32)
    second = tl.zeros([CHUNK, WIDTH], tl.float32)
    first_bias = tl.zeros([CHUNK], tl.float32)
    second_bias = tl.zeros([WIDTH], tl.float32)
    count = count_rows(table, e, batch, 0, LAST)
    share = tl.cdiv(tl.cdiv(count, M), splits) * M
    for begin in range(split * share, tl.minimum((split + 1) * share, count), M):
        row = begin + tl.arange(0, M)
        inside = row < count
        sample, step = locate_rows(row, table, e, 0, LAST)
        mask = inside[:, None] & there[None, :]
        g_at = e.to(tl.int64) * g_e + (sample * g_b + step * g_t)[:, None] + channel[None, :]
        m_at = e.to(tl.int64) * m_e + (sample * m_b + step * m_t)[:, None] + channel[None, :]
        grad = tl.load(grad_ptr + g_at, mask, 0.0)
        if RES:
            grad *= keep_factor(
                last_keys, table, e, sample, step, channel, batch, inside, 0, LAST, DIM, GHOST, RES_THRESHOLD, RES_SCALE
            )
        unit, _ = normalised(tl.load(middle_ptr + m_at, mask, 0.0), channel, DIM)
        y = (unit * gain[None, :] + shift[None, :]).to(DOT)
        before = product(y, w1, PRECISION) + b1[None, :]
        hidden = tl.maximum(before, 0.0)
        grad_hidden = product(grad.to(DOT), w2, PRECISION)
        if RELU:
            keep = keep_factor(
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
            hidden *= keep
            grad_hidden *= keep
        grad_hidden = tl.where(before > 0, grad_hidden, 0.0)
        first += product(tl.trans(grad_hidden.to(DOT)), unit.to(DOT), PRECISION)
        second += product(tl.trans(hidden.to(DOT)), grad.to(DOT), PRECISION)
        first_bias += tl.sum(grad_hidden, 0)
        second_bias += tl.sum(grad, 0)
    part = split * encoders + e
    at = parts_ptr + (part.to(tl.int64) * (12 * DIM) + unit_no)[:, None] * DIM + channel[None, :]
    mask = real[:, None] & there[None, :]
    tl.store(at + 4 * DIM * DIM, first, mask)
    tl.store(at + 8 * DIM * DIM, second, mask)
    tl.store(bias_parts_ptr + part * (9 * DIM) + 4 * DIM + unit_no, first_bias, real)
    tl.store(bias_parts_ptr + part * (9 * DIM) + 8 * DIM + channel, second_bias, there & (tl.program_id(0) == 0))


@triton.jit
def _add_up(
    parts_ptr,
    bias_parts_ptr,
    w_ptr,
    grad_w_ptr,
    grad_bias_ptr,
    gain_ptr,
    shift_ptr,
    grad_gain_ptr,
    grad_shift_ptr,
    e,
    block,
    splits,
    encoders,
    FIRST: tl.constexpr,
    ROWS: tl.constexpr,
    BIAS: tl.constexpr,
    NORM: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DIM: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """The gradients of ROWS rows of `parts` from FIRST on, for C of their columns."""
    col = block * C + tl.arange(0, C)
    there = col < DIM
    gain = tl.load(gain_ptr + e * DIM + col, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + col, there, 0.0)
    grad_gain = tl.zeros([C], tl.float32)
    grad_shift = tl.zeros([C], tl.float32)
    for begin in range(0, ROWS, R):
        row = begin + tl.arange(0, R)
        real = row < ROWS
        mask = real[:, None] & there[None, :]
        total = tl.zeros([R, C], tl.float32)
        bias = tl.zeros([R], tl.float32)
        for split in range(0, splits):
            part = split * encoders + e
            at = parts_ptr + (part.to(tl.int64) * (12 * DIM) + FIRST + row)[:, None] * DIM + col[None, :]
            total += tl.load(at, mask, 0.0)
            if not TRANSPOSED:
                bias += tl.load(bias_parts_ptr + part * (9 * DIM) + BIAS + row, real, 0.0)
        if NORM:
            w = tl.load(w_ptr + (e * ROWS + row)[:, None] * DIM + col[None, :], mask, 0.0)
            grad_gain += tl.sum(total * w, 0)
            grad_shift += tl.sum(w * bias[:, None], 0)
            total = total * gain[None, :] + bias[:, None] * shift[None, :]
        if TRANSPOSED:
            tl.store(grad_w_ptr + (e * DIM + col)[None, :] * ROWS + row[:, None], total, mask)
        else:
            tl.store(grad_w_ptr + (e * ROWS + row)[:, None] * DIM + col[None, :], total, mask)
            tl.store(grad_bias_ptr + e * ROWS + row, bias, real & (block == 0))
    if NORM:
        tl.store(grad_gain_ptr + e * DIM + col, grad_gain, there)
        tl.store(grad_shift_ptr + e * DIM + col, grad_shift, there)
    if TRANSPOSED:
        bias = tl.zeros([C], tl.float32)
        for split in range(0, splits):
            bias += tl.load(bias_parts_ptr + (split * encoders + e) * (9 * DIM) + BIAS + col, there, 0.0)
        tl.store(grad_bias_ptr + e * DIM + col, bias, there)


@triton.jit
def add_up_weights(
    parts,
    bias_parts,
    in_w,
    in_b_grad,
    in_w_grad,
    out_b_grad,
    out_w_grad,
    w1,
    b1_grad,
    w1_grad,
    b2_grad,
    w2_grad,
    gain,
    shift,
    grad_gain,
    grad_shift,
    splits,
    encoders,
    DIM: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Gradients of all weights of a layer; gain, shift and their gradients are [2, E, d]."""
    kind = tl.program_id(0)
    e = tl.program_id(1)
    block = tl.program_id(2)
    second = encoders * DIM
    if kind == 0:
        _add_up(
            parts,
            bias_parts,
            in_w,
            in_w_grad,
            in_b_grad,
            gain,
            shift,
            grad_gain,
            grad_shift,
            e,
            block,
            splits,
            encoders,
            0,
            3 * DIM,
            0,
            True,
            False,
            DIM,
            R,
            C,
        )
    elif kind == 1:
        _add_up(
            parts,
            bias_parts,
            in_w,
            out_w_grad,
            out_b_grad,
            gain,
            shift,
            grad_gain,
            grad_shift,
            e,
            block,
            splits,
            encoders,
            3 * DIM,
            DIM,
            3 * DIM,
            False,
            False,
            DIM,
            R,
            C,
        )
    elif kind == 2:
        _add_up(
            parts,
            bias_parts,
            w1,
            w1_grad,
            b1_grad,
            gain + second,
            shift + second,
            grad_gain + second,
            grad_shift + second,
            e,
            block,
            splits,
            encoders,
            4 * DIM,
            4 * DIM,
            4 * DIM,
            True,
            False,
            DIM,
            R,
            C,
        )
    else:
        _add_up(
            parts,
            bias_parts,
            w1,
            w2_grad,
            b2_grad,
            gain,
            shift,
            grad_gain,
            grad_shift,
            e,
            block,
            splits,
            encoders,
            8 * DIM,
            4 * DIM,
            8 * DIM,
            False,
            True,
            DIM,
            R,
            C,
        )
