"""Triton kernels of an encoder layer, backward: gradients of its weights.

Two launches sum over the rows, each with SPLITS programs for SPLITS shares of them (no atomics); the third adds the
shares up. `shares` [SPLITS, E, 12d, d] holds, row after row, the gradients of the input projection (3d rows, with
respect to the weight that the layer norm's gain is folded into), of the output projection (d), of the MLP's first layer
(4d, folded as well) and of its second, transposed (4d). `bias_shares` [SPLITS, E, 9d] are those of the biases, in the
same order; the second layer has d of them.
"""

import torch
import triton
import triton.language as tl

from dmd.kernels.common.launching import launch, named_strides
from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import KEYS, QUERIES, count_rows, keep_factor, locate_rows, normalised, whole_steps
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import ActivationGradients, Activations, LayerCall

IN_PROJ = tl.constexpr(0)
"""The first row of the input projection in `shares`, and its first bias, in multiples of d."""
IN_PROJ_KEYS = tl.constexpr(1)
"""That of its part for keys and values."""
OUT_PROJ = tl.constexpr(3)
"""That of the output projection."""
FC1 = tl.constexpr(4)
"""That of the MLP's first layer."""
FC2 = tl.constexpr(8)
"""That of the MLP's second layer."""
WEIGHT_ROWS = tl.constexpr(12)
"""Rows of all weights, in multiples of d."""
BIASES = tl.constexpr(9)
"""All biases, in multiples of d."""
MAX_SPLITS = 8
"""Most shares of an encoder's rows."""
LEAST_BLOCKS = 8
"""Blocks of rows of a share, at least."""

IN_PROJ_JOB = tl.constexpr(0)
"""Number of the programs of `add_up_weights` that add up the input projection."""
OUT_PROJ_JOB = tl.constexpr(1)
FC1_JOB = tl.constexpr(2)
FC2_JOB = tl.constexpr(3)
JOBS = 4
ADD_ROWS = 64
"""Rows of weights that a program of `add_up_weights` adds up at a time."""
ADD_COLS = 32
"""Columns of weights of a program of `add_up_weights`."""


@triton.jit
def _outer(
    a_ptr,  # [B, T, COLS], of the encoder: gradients
    b_ptr,  # [B, T, d], of the encoder: inputs
    col,  # [CHUNK], channels of a
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded steps (begin, end) of each sample
    keys,  # [E, ghost batches, 2], int32, keys of the dropout of a
    a_b,  # elements between samples, of a
    a_t,  # between steps
    b_b,  # between samples, of b
    b_t,  # between steps
    e,  # number of the encoder
    batch,  # B
    split,  # number of the share of the rows
    splits,  # shares of the encoder's rows
    COLS: tl.constexpr,  # channels of a
    SIDE: tl.constexpr,  # QUERIES or KEYS: whose lengths a has
    LAST: tl.constexpr,  # a is of each sample's last step alone
    RANGED: tl.constexpr,  # whether there are ranges: then the last step is the last unpadded one
    WHOLE: tl.constexpr,  # b has all steps, whichever a has
    NORM: tl.constexpr,  # whether b is normalised first
    DROP: tl.constexpr,  # whether elements of a are dropped
    GHOST: tl.constexpr,  # samples of a ghost batch
    CUT: tl.constexpr,  # the rate in 1/65536
    SCALE: tl.constexpr,  # what kept elements are multiplied by
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    M: tl.constexpr,  # rows at a time
    CHUNK: tl.constexpr,  # channels of a
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Sums over a share of the rows: a[:, col]^T b [CHUNK, WIDTH] and a[:, col] [CHUNK]."""
    channel = tl.arange(0, WIDTH)
    total = tl.zeros([CHUNK, WIDTH], tl.float32)
    bias = tl.zeros([CHUNK], tl.float32)
    count = count_rows(table, e, batch, SIDE=SIDE, LAST=LAST)
    size = tl.cdiv(tl.cdiv(count, M), splits) * M
    for begin in range(split * size, tl.minimum((split + 1) * size, count), M):
        row = begin + tl.arange(0, M)
        inside = row < count
        sample, step = locate_rows(row, table, e, SIDE=SIDE, LAST=LAST)
        a_at = (sample * a_b + step * a_t)[:, None] + col[None, :]
        a = tl.load(a_ptr + a_at, inside[:, None] & (col < COLS)[None, :], 0.0).to(tl.float32)
        if DROP:
            a *= keep_factor(
                keys,
                table,
                e,
                sample,
                step,
                col,
                batch,
                inside,
                SIDE=SIDE,
                LAST=LAST,
                COLS=COLS,
                GHOST=GHOST,
                CUT=CUT,
                SCALE=SCALE,
            )
        place = step
        if WHOLE:
            place = whole_steps(sample, step, inside, table, ranges, e, batch, SIDE=SIDE, LAST=LAST, RANGED=RANGED)
        b_at = (sample * b_b + place * b_t)[:, None] + channel[None, :]
        b = tl.load(b_ptr + b_at, inside[:, None] & (channel < DIM)[None, :], 0.0).to(tl.float32)
        if NORM:
            b, _ = normalised(b, channel, DIM=DIM)
        total += product(tl.trans(a.to(DOT)), b.to(DOT), PRECISION=PRECISION)
        bias += tl.sum(a, 0)
    return total, bias


@triton.jit
def projection_weights(
    q_ptr,  # [E, B, Tq, d], type of DOT, gradient of the queries
    kv_ptr,  # [E, B, Tk, 2d], type of DOT, gradient of keys and values
    grad_middle_ptr,  # [E, B, Tq, d], float32
    x_ptr,  # [E, B, T, d], float32, input of the layer
    source_ptr,  # [E, B, Tk, d], float32, what keys and values come from; x itself with SELF
    mixed_ptr,  # [E, B, Tq, d], type of DOT, output of the attention; with the strides of grad_middle
    shares_ptr,  # [splits, E, 12d, d], float32, written
    bias_shares_ptr,  # [splits, E, 9d], float32, written
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded steps (begin, end) of each sample's queries
    res_keys,  # [E, ghost batches, 2], int32, keys of the dropout of the attention's branch
    q_e,  # elements between encoders, of the gradient of the queries
    q_b,  # between samples
    q_t,  # between steps
    kv_e,  # elements between encoders, of that of keys and values
    kv_b,  # between samples
    kv_t,  # between steps
    m_e,  # elements between encoders, of that of middle, and mixed
    m_b,  # between samples
    m_t,  # between steps
    x_e,  # elements between encoders, of x
    x_b,  # between samples
    x_t,  # between steps
    s_e,  # elements between encoders, of the source
    s_b,  # between samples
    s_t,  # between steps
    batch,  # B
    splits,  # shares of an encoder's rows
    encoders,  # E
    SELF: tl.constexpr,  # whether keys and values come from x; otherwise the source is normalised already
    LAST: tl.constexpr,  # queries are of each sample's last step alone, Tq = 1
    RANGED: tl.constexpr,  # whether there are ranges: then the last step is the last unpadded one
    GHOST: tl.constexpr,  # samples of a ghost batch
    RES: tl.constexpr,  # whether elements of the attention's branch are dropped
    RES_CUT: tl.constexpr,  # their rate in 1/65536
    RES_SCALE: tl.constexpr,  # what the kept ones are multiplied by
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    M: tl.constexpr,  # rows at a time
    CHUNK: tl.constexpr,  # rows of the weights of a program
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Shares of the gradients of the input and output projections; a program per CHUNK of their rows.

    The first programs take the queries' part of the input projection, those behind them the part of keys and values,
    and the last the output projection.
    """
    job = tl.program_id(0)
    e = tl.program_id(1)
    split = tl.program_id(2)
    far = e.to(tl.int64)
    narrow: tl.constexpr = (DIM + CHUNK - 1) // CHUNK
    wide: tl.constexpr = (2 * DIM + CHUNK - 1) // CHUNK
    if job < narrow:
        first = IN_PROJ * DIM
        col = job * CHUNK + tl.arange(0, CHUNK)
        limit = DIM
        total, bias = _outer(
            a_ptr=q_ptr + far * q_e,
            b_ptr=x_ptr + far * x_e,
            col=col,
            table=table,
            ranges=ranges,
            keys=res_keys,
            a_b=q_b,
            a_t=q_t,
            b_b=x_b,
            b_t=x_t,
            e=e,
            batch=batch,
            split=split,
            splits=splits,
            COLS=DIM,
            SIDE=QUERIES,
            LAST=LAST,
            RANGED=RANGED,
            WHOLE=True,
            NORM=True,
            DROP=False,
            GHOST=GHOST,
            CUT=RES_CUT,
            SCALE=RES_SCALE,
            DIM=DIM,
            WIDTH=WIDTH,
            M=M,
            CHUNK=CHUNK,
            DOT=DOT,
            PRECISION=PRECISION,
        )
    elif job < narrow + wide:
        first = IN_PROJ_KEYS * DIM
        col = (job - narrow) * CHUNK + tl.arange(0, CHUNK)
        limit = 2 * DIM
        total, bias = _outer(
            a_ptr=kv_ptr + far * kv_e,
            b_ptr=source_ptr + far * s_e,
            col=col,
            table=table,
            ranges=ranges,
            keys=res_keys,
            a_b=kv_b,
            a_t=kv_t,
            b_b=s_b,
            b_t=s_t,
            e=e,
            batch=batch,
            split=split,
            splits=splits,
            COLS=2 * DIM,
            SIDE=KEYS,
            LAST=False,
            RANGED=RANGED,
            WHOLE=True,
            NORM=SELF,
            DROP=False,
            GHOST=GHOST,
            CUT=RES_CUT,
            SCALE=RES_SCALE,
            DIM=DIM,
            WIDTH=WIDTH,
            M=M,
            CHUNK=CHUNK,
            DOT=DOT,
            PRECISION=PRECISION,
        )
    else:
        first = OUT_PROJ * DIM
        col = (job - narrow - wide) * CHUNK + tl.arange(0, CHUNK)
        limit = DIM
        total, bias = _outer(
            a_ptr=grad_middle_ptr + far * m_e,
            b_ptr=mixed_ptr + far * m_e,
            col=col,
            table=table,
            ranges=ranges,
            keys=res_keys,
            a_b=m_b,
            a_t=m_t,
            b_b=m_b,
            b_t=m_t,
            e=e,
            batch=batch,
            split=split,
            splits=splits,
            COLS=DIM,
            SIDE=QUERIES,
            LAST=LAST,
            RANGED=RANGED,
            WHOLE=False,
            NORM=False,
            DROP=RES,
            GHOST=GHOST,
            CUT=RES_CUT,
            SCALE=RES_SCALE,
            DIM=DIM,
            WIDTH=WIDTH,
            M=M,
            CHUNK=CHUNK,
            DOT=DOT,
            PRECISION=PRECISION,
        )
    channel = tl.arange(0, WIDTH)
    share = split * encoders + e
    row = share.to(tl.int64) * (WEIGHT_ROWS * DIM) + first + col
    real = col < limit
    tl.store(shares_ptr + row[:, None] * DIM + channel[None, :], total, real[:, None] & (channel < DIM)[None, :])
    tl.store(bias_shares_ptr + share * (BIASES * DIM) + first + col, bias, real)


@triton.jit
def _mlp_tiles(
    w1_ptr,  # [E, 4d, d]
    w2_ptr,  # [E, d, 4d]
    e,  # number of the encoder
    unit_no,  # [CHUNK], numbers of hidden units
    channel,  # [WIDTH]
    DIM: tl.constexpr,  # d
    DOT: tl.constexpr,  # type of the operands of products
):
    """Both weights of some hidden units, [WIDTH, CHUNK] each."""
    mask = (channel < DIM)[:, None] & (unit_no < 4 * DIM)[None, :]
    w1 = tl.load(w1_ptr + (e * 4 * DIM + unit_no)[None, :] * DIM + channel[:, None], mask, 0.0)
    w2 = tl.load(w2_ptr + (e * DIM + channel)[:, None] * (4 * DIM) + unit_no[None, :], mask, 0.0)
    return w1.to(DOT), w2.to(DOT)


@triton.jit
def mlp_weights(
    grad_ptr,  # [E, B, Tq, d], float32, gradient of the layer's output
    middle_ptr,  # [E, B, Tq, d], float32
    shares_ptr,  # [splits, E, 12d, d], float32, written
    bias_shares_ptr,  # [splits, E, 9d], float32, written
    gain_ptr,  # [E, d], of the layer norm before the MLP
    shift_ptr,  # [E, d]
    w1_ptr,  # [E, 4d, d]
    b1_ptr,  # [E, 4d]
    w2_ptr,  # [E, d, 4d]
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    relu_keys,  # [E, ghost batches, 2], int32, of that of the hidden units
    last_keys,  # [E, ghost batches, 2], int32, of that of the MLP's branch
    g_e,  # elements between encoders, of the gradient of the output
    g_b,  # between samples
    g_t,  # between steps
    m_e,  # elements between encoders, of middle
    m_b,  # between samples
    m_t,  # between steps
    batch,  # B
    splits,  # shares of an encoder's rows
    encoders,  # E
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    LAST: tl.constexpr,  # queries are of each sample's last step alone, Tq = 1
    GHOST: tl.constexpr,  # samples of a ghost batch
    RES: tl.constexpr,  # whether elements of both branches are dropped
    RES_CUT: tl.constexpr,  # their rate in 1/65536
    RES_SCALE: tl.constexpr,  # what the kept ones are multiplied by
    RELU: tl.constexpr,  # whether hidden units are dropped
    RELU_CUT: tl.constexpr,  # their rate in 1/65536
    RELU_SCALE: tl.constexpr,  # what the kept ones are multiplied by
    M: tl.constexpr,  # rows at a time
    CHUNK: tl.constexpr,  # hidden units of a program
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
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
    w1, w2 = _mlp_tiles(w1_ptr, w2_ptr, e, unit_no, channel, DIM=DIM, DOT=DOT)
    b1 = tl.load(b1_ptr + e * 4 * DIM + unit_no, real, 0.0)
    first = tl.zeros([CHUNK, WIDTH], tl.float32)
    second = tl.zeros([CHUNK, WIDTH], tl.float32)
    first_bias = tl.zeros([CHUNK], tl.float32)
    second_bias = tl.zeros([WIDTH], tl.float32)
    count = count_rows(table, e, batch, SIDE=QUERIES, LAST=LAST)
    size = tl.cdiv(tl.cdiv(count, M), splits) * M
    for begin in range(split * size, tl.minimum((split + 1) * size, count), M):
        row = begin + tl.arange(0, M)
        inside = row < count
        sample, step = locate_rows(row, table, e, SIDE=QUERIES, LAST=LAST)
        mask = inside[:, None] & there[None, :]
        g_at = e.to(tl.int64) * g_e + (sample * g_b + step * g_t)[:, None] + channel[None, :]
        m_at = e.to(tl.int64) * m_e + (sample * m_b + step * m_t)[:, None] + channel[None, :]
        grad = tl.load(grad_ptr + g_at, mask, 0.0)
        if RES:
            grad *= keep_factor(
                last_keys,
                table,
                e,
                sample,
                step,
                channel,
                batch,
                inside,
                SIDE=QUERIES,
                LAST=LAST,
                COLS=DIM,
                GHOST=GHOST,
                CUT=RES_CUT,
                SCALE=RES_SCALE,
            )
        unit, _ = normalised(tl.load(middle_ptr + m_at, mask, 0.0), channel, DIM=DIM)
        y = (unit * gain[None, :] + shift[None, :]).to(DOT)
        before = product(y, w1, PRECISION=PRECISION) + b1[None, :]
        hidden = tl.maximum(before, 0.0)
        grad_hidden = product(grad.to(DOT), w2, PRECISION=PRECISION)
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
                SIDE=QUERIES,
                LAST=LAST,
                COLS=4 * DIM,
                GHOST=GHOST,
                CUT=RELU_CUT,
                SCALE=RELU_SCALE,
            )
            hidden *= keep
            grad_hidden *= keep
        grad_hidden = tl.where(before > 0, grad_hidden, 0.0)
        first += product(tl.trans(grad_hidden.to(DOT)), unit.to(DOT), PRECISION=PRECISION)
        second += product(tl.trans(hidden.to(DOT)), grad.to(DOT), PRECISION=PRECISION)
        first_bias += tl.sum(grad_hidden, 0)
        second_bias += tl.sum(grad, 0)
    share = split * encoders + e
    at = shares_ptr + (share.to(tl.int64) * (WEIGHT_ROWS * DIM) + unit_no)[:, None] * DIM + channel[None, :]
    mask = real[:, None] & there[None, :]
    tl.store(at + FC1 * DIM * DIM, first, mask)
    tl.store(at + FC2 * DIM * DIM, second, mask)
    bias_at = bias_shares_ptr + share * (BIASES * DIM)
    tl.store(bias_at + FC1 * DIM + unit_no, first_bias, real)
    tl.store(bias_at + FC2 * DIM + channel, second_bias, there & (tl.program_id(0) == 0))


@triton.jit
def _sum_weight_shares(
    shares_ptr,  # [splits, E, 12d, d], float32
    row,  # [ADD_ROWS], rows of a weight
    col,  # [ADD_COLS], channels
    mask,  # [ADD_ROWS, ADD_COLS]
    e,  # number of the encoder
    splits,  # shares
    encoders,  # E
    FIRST: tl.constexpr,  # the weight's first row in `shares`
    DIM: tl.constexpr,  # d
    ADD_ROWS: tl.constexpr,
    ADD_COLS: tl.constexpr,
):
    """Sum of the shares of a part of a weight's gradient [ADD_ROWS, ADD_COLS]."""
    total = tl.zeros([ADD_ROWS, ADD_COLS], tl.float32)
    for split in range(0, splits):
        share = split * encoders + e
        at = shares_ptr + (share.to(tl.int64) * (WEIGHT_ROWS * DIM) + FIRST + row)[:, None] * DIM + col[None, :]
        total += tl.load(at, mask, 0.0)
    return total


@triton.jit
def _sum_bias_shares(
    bias_shares_ptr,  # [splits, E, 9d], float32
    number,  # [N], numbers of biases
    mask,  # [N]
    e,  # number of the encoder
    splits,  # shares
    encoders,  # E
    FIRST: tl.constexpr,  # the first of these biases in `bias_shares`
    DIM: tl.constexpr,  # d
    N: tl.constexpr,
):
    """Sum of the shares of a part of a bias's gradient [N]."""
    total = tl.zeros([N], tl.float32)
    for split in range(0, splits):
        share = split * encoders + e
        total += tl.load(bias_shares_ptr + share * (BIASES * DIM) + FIRST + number, mask, 0.0)
    return total


@triton.jit
def _add_up_folded(
    shares_ptr,  # [splits, E, 12d, d], float32
    bias_shares_ptr,  # [splits, E, 9d], float32
    w_ptr,  # [E, ROWS, d]
    grad_w_ptr,  # [E, ROWS, d], written
    grad_bias_ptr,  # [E, ROWS], written
    gain_ptr,  # [E, d], of the layer norm before the weight
    shift_ptr,  # [E, d]
    grad_gain_ptr,  # [E, d], written
    grad_shift_ptr,  # [E, d], written
    e,  # number of the encoder
    block,  # number of the program's columns
    splits,  # shares
    encoders,  # E
    FIRST: tl.constexpr,  # the weight's first row in `shares`, and its first bias
    ROWS: tl.constexpr,  # of the weight
    DIM: tl.constexpr,  # d
    ADD_ROWS: tl.constexpr,  # rows at a time
    ADD_COLS: tl.constexpr,  # columns of the program
):
    """Gradients of a weight that a layer norm is folded into, of its bias, and of the layer norm."""
    col = block * ADD_COLS + tl.arange(0, ADD_COLS)
    there = col < DIM
    gain = tl.load(gain_ptr + e * DIM + col, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + col, there, 0.0)
    grad_gain = tl.zeros([ADD_COLS], tl.float32)
    grad_shift = tl.zeros([ADD_COLS], tl.float32)
    for begin in range(0, ROWS, ADD_ROWS):
        row = begin + tl.arange(0, ADD_ROWS)
        real = row < ROWS
        mask = real[:, None] & there[None, :]
        total = _sum_weight_shares(
            shares_ptr,
            row,
            col,
            mask,
            e,
            splits,
            encoders,
            FIRST=FIRST,
            DIM=DIM,
            ADD_ROWS=ADD_ROWS,
            ADD_COLS=ADD_COLS,
        )
        bias = _sum_bias_shares(bias_shares_ptr, row, real, e, splits, encoders, FIRST=FIRST, DIM=DIM, N=ADD_ROWS)
        w = tl.load(w_ptr + (e * ROWS + row)[:, None] * DIM + col[None, :], mask, 0.0)
        grad_gain += tl.sum(total * w, 0)
        grad_shift += tl.sum(w * bias[:, None], 0)
        total = total * gain[None, :] + bias[:, None] * shift[None, :]
        tl.store(grad_w_ptr + (e * ROWS + row)[:, None] * DIM + col[None, :], total, mask)
        tl.store(grad_bias_ptr + e * ROWS + row, bias, real & (block == 0))
    tl.store(grad_gain_ptr + e * DIM + col, grad_gain, there)
    tl.store(grad_shift_ptr + e * DIM + col, grad_shift, there)


@triton.jit
def _add_up(
    shares_ptr,  # [splits, E, 12d, d], float32
    bias_shares_ptr,  # [splits, E, 9d], float32
    grad_w_ptr,  # [E, ROWS, d], written
    grad_bias_ptr,  # [E, ROWS], written
    e,  # number of the encoder
    block,  # number of the program's columns
    splits,  # shares
    encoders,  # E
    FIRST: tl.constexpr,  # the weight's first row in `shares`, and its first bias
    ROWS: tl.constexpr,  # of the weight
    DIM: tl.constexpr,  # d
    ADD_ROWS: tl.constexpr,  # rows at a time
    ADD_COLS: tl.constexpr,  # columns of the program
):
    """Gradients of a weight and of its bias."""
    col = block * ADD_COLS + tl.arange(0, ADD_COLS)
    there = col < DIM
    for begin in range(0, ROWS, ADD_ROWS):
        row = begin + tl.arange(0, ADD_ROWS)
        real = row < ROWS
        mask = real[:, None] & there[None, :]
        total = _sum_weight_shares(
            shares_ptr,
            row,
            col,
            mask,
            e,
            splits,
            encoders,
            FIRST=FIRST,
            DIM=DIM,
            ADD_ROWS=ADD_ROWS,
            ADD_COLS=ADD_COLS,
        )
        bias = _sum_bias_shares(bias_shares_ptr, row, real, e, splits, encoders, FIRST=FIRST, DIM=DIM, N=ADD_ROWS)
        tl.store(grad_w_ptr + (e * ROWS + row)[:, None] * DIM + col[None, :], total, mask)
        tl.store(grad_bias_ptr + e * ROWS + row, bias, real & (block == 0))


@triton.jit
def _add_up_transposed(
    shares_ptr,  # [splits, E, 12d, d], float32
    bias_shares_ptr,  # [splits, E, 9d], float32
    grad_w_ptr,  # [E, d, ROWS], written
    grad_bias_ptr,  # [E, d], written
    e,  # number of the encoder
    block,  # number of the program's columns
    splits,  # shares
    encoders,  # E
    FIRST: tl.constexpr,  # the weight's first row in `shares`, and its first bias
    ROWS: tl.constexpr,  # of the transposed weight
    DIM: tl.constexpr,  # d
    ADD_ROWS: tl.constexpr,  # rows at a time
    ADD_COLS: tl.constexpr,  # columns of the program
):
    """Gradients of a weight whose shares are transposed, and of its bias."""
    col = block * ADD_COLS + tl.arange(0, ADD_COLS)
    there = col < DIM
    for begin in range(0, ROWS, ADD_ROWS):
        row = begin + tl.arange(0, ADD_ROWS)
        mask = (row < ROWS)[:, None] & there[None, :]
        total = _sum_weight_shares(
            shares_ptr,
            row,
            col,
            mask,
            e,
            splits,
            encoders,
            FIRST=FIRST,
            DIM=DIM,
            ADD_ROWS=ADD_ROWS,
            ADD_COLS=ADD_COLS,
        )
        tl.store(grad_w_ptr + (e * DIM + col)[None, :] * ROWS + row[:, None], total, mask)
    bias = _sum_bias_shares(bias_shares_ptr, col, there, e, splits, encoders, FIRST=FIRST, DIM=DIM, N=ADD_COLS)
    tl.store(grad_bias_ptr + e * DIM + col, bias, there)


@triton.jit
def add_up_weights(
    shares_ptr,  # [splits, E, 12d, d], float32
    bias_shares_ptr,  # [splits, E, 9d], float32
    in_proj_weight,  # [E, 3d, d]
    fc1_weight,  # [E, 4d, d]
    norm_weight,  # [2, E, d], gains of the layer norms before the attention and before the MLP
    norm_bias,  # [2, E, d], their shifts
    grad_in_proj_weight,  # [E, 3d, d], written
    grad_in_proj_bias,  # [E, 3d], written
    grad_out_proj_weight,  # [E, d, d], written
    grad_out_proj_bias,  # [E, d], written
    grad_fc1_weight,  # [E, 4d, d], written
    grad_fc1_bias,  # [E, 4d], written
    grad_fc2_weight,  # [E, d, 4d], written
    grad_fc2_bias,  # [E, d], written
    grad_norm_weight,  # [2, E, d], written
    grad_norm_bias,  # [2, E, d], written
    splits,  # shares
    encoders,  # E
    DIM: tl.constexpr,  # d
    ADD_ROWS: tl.constexpr,  # rows at a time
    ADD_COLS: tl.constexpr,  # columns of a program
):
    """Gradients of all weights of a layer; a program per weight, encoder and ADD_COLS columns."""
    job = tl.program_id(0)
    e = tl.program_id(1)
    block = tl.program_id(2)
    mlp_norm = encoders * DIM  # where the second layer norm's gains and shifts begin
    if job == IN_PROJ_JOB:
        _add_up_folded(
            shares_ptr,
            bias_shares_ptr,
            w_ptr=in_proj_weight,
            grad_w_ptr=grad_in_proj_weight,
            grad_bias_ptr=grad_in_proj_bias,
            gain_ptr=norm_weight,
            shift_ptr=norm_bias,
            grad_gain_ptr=grad_norm_weight,
            grad_shift_ptr=grad_norm_bias,
            e=e,
            block=block,
            splits=splits,
            encoders=encoders,
            FIRST=IN_PROJ * DIM,
            ROWS=3 * DIM,
            DIM=DIM,
            ADD_ROWS=ADD_ROWS,
            ADD_COLS=ADD_COLS,
        )
    elif job == OUT_PROJ_JOB:
        _add_up(
            shares_ptr,
            bias_shares_ptr,
            grad_w_ptr=grad_out_proj_weight,
            grad_bias_ptr=grad_out_proj_bias,
            e=e,
            block=block,
            splits=splits,
            encoders=encoders,
            FIRST=OUT_PROJ * DIM,
            ROWS=DIM,
            DIM=DIM,
            ADD_ROWS=ADD_ROWS,
            ADD_COLS=ADD_COLS,
        )
    elif job == FC1_JOB:
        _add_up_folded(
            shares_ptr,
            bias_shares_ptr,
            w_ptr=fc1_weight,
            grad_w_ptr=grad_fc1_weight,
            grad_bias_ptr=grad_fc1_bias,
            gain_ptr=norm_weight + mlp_norm,
            shift_ptr=norm_bias + mlp_norm,
            grad_gain_ptr=grad_norm_weight + mlp_norm,
            grad_shift_ptr=grad_norm_bias + mlp_norm,
            e=e,
            block=block,
            splits=splits,
            encoders=encoders,
            FIRST=FC1 * DIM,
            ROWS=4 * DIM,
            DIM=DIM,
            ADD_ROWS=ADD_ROWS,
            ADD_COLS=ADD_COLS,
        )
    else:
        _add_up_transposed(
            shares_ptr,
            bias_shares_ptr,
            grad_w_ptr=grad_fc2_weight,
            grad_bias_ptr=grad_fc2_bias,
            e=e,
            block=block,
            splits=splits,
            encoders=encoders,
            FIRST=FC2 * DIM,
            ROWS=4 * DIM,
            DIM=DIM,
            ADD_ROWS=ADD_ROWS,
            ADD_COLS=ADD_COLS,
        )


def weight_gradients(
    call: LayerCall, weights: LayerWeights, activations: Activations, grads: ActivationGradients
) -> LayerWeights:
    """Gradients of a layer's weights."""
    x, middle = activations.x, activations.middle
    source = x if activations.source is None else activations.source
    encoders, batch, steps, dim = x.shape
    sizes, mlp_sizes = call.sizes("projection_weights", dim), call.sizes("mlp_weights", dim)
    splits = max(1, min(MAX_SPLITS, triton.cdiv(batch * steps, sizes["M"]) // LEAST_BLOCKS))
    shares = torch.empty(splits, encoders, WEIGHT_ROWS.value * dim, dim, device=x.device)
    bias_shares = torch.empty(splits, encoders, BIASES.value * dim, device=x.device)
    dropout = call.dropout(batch)
    jobs = 2 * triton.cdiv(dim, sizes["CHUNK"]) + triton.cdiv(2 * dim, sizes["CHUNK"])
    launch(
        projection_weights,
        (jobs, encoders, splits),
        q_ptr=grads.query,
        kv_ptr=grads.key_value,
        grad_middle_ptr=grads.middle,
        x_ptr=x,
        source_ptr=source,
        mixed_ptr=activations.mixed,
        shares_ptr=shares,
        bias_shares_ptr=bias_shares,
        table=call.table,
        ranges=call.attention.ranges,
        res_keys=call.key("res"),
        **named_strides("q", grads.query),
        **named_strides("kv", grads.key_value),
        **named_strides("m", grads.middle),
        **named_strides("x", x),
        **named_strides("s", source),
        batch=batch,
        splits=splits,
        encoders=encoders,
        SELF=source is x,
        LAST=call.last,
        RANGED=call.attention.ranged,
        GHOST=dropout["GHOST"],
        RES=dropout["RES"],
        RES_CUT=dropout["RES_CUT"],
        RES_SCALE=dropout["RES_SCALE"],
        **sizes,
    )
    launch(
        mlp_weights,
        (triton.cdiv(4 * dim, mlp_sizes["CHUNK"]), encoders, splits),
        grad_ptr=grads.out,
        middle_ptr=middle,
        shares_ptr=shares,
        bias_shares_ptr=bias_shares,
        gain_ptr=weights.norm_weight[1],
        shift_ptr=weights.norm_bias[1],
        w1_ptr=weights.fc1_weight,
        b1_ptr=weights.fc1_bias,
        w2_ptr=weights.fc2_weight,
        table=call.table,
        relu_keys=call.key("relu"),
        last_keys=call.key("last"),
        **named_strides("g", grads.out),
        **named_strides("m", middle),
        batch=batch,
        splits=splits,
        encoders=encoders,
        LAST=call.last,
        **dropout,
        **mlp_sizes,
    )
    own = LayerWeights(*(torch.empty_like(weight) for weight in weights))
    launch(
        add_up_weights,
        (JOBS, encoders, triton.cdiv(dim, ADD_COLS)),
        shares_ptr=shares,
        bias_shares_ptr=bias_shares,
        in_proj_weight=weights.in_proj_weight,
        fc1_weight=weights.fc1_weight,
        norm_weight=weights.norm_weight,
        norm_bias=weights.norm_bias,
        **{f"grad_{name}": grad for name, grad in own._asdict().items()},
        splits=splits,
        encoders=encoders,
        DIM=dim,
        ADD_ROWS=ADD_ROWS,
        ADD_COLS=ADD_COLS,
    )
    return own
