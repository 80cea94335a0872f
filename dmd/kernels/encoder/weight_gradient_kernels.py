"""Triton kernels of an encoder layer, backward: gradients of its weights, in three launches.

Two launches sum over the rows. Each has some programs that take a share of the rows each (no atomics), and fills its
part of `shares` and `bias_shares`. The third adds the shares up: `dmd.kernels.encoder.weight_sum_kernels`.
"""

import torch
import triton
import triton.language as tl

from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.launching import launch, named_strides
from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import KEYS, QUERIES, count_rows, keep_factor, locate_rows, normalised, whole_steps
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import ActivationGradients, Activations, LayerCall
from dmd.kernels.encoder.weight_sum_kernels import (
    BIASES,
    FC1,
    FC2,
    IN_PROJ,
    IN_PROJ_KEYS,
    OUT_PROJ,
    WEIGHT_ROWS,
    launch_add_up_weights,
)

MAX_SPLITS = 8
"""Most shares of an encoder's rows."""
LEAST_BLOCKS = 8
"""Blocks of rows of a share, at least."""


@triton.jit
def _outer(
    a_ptr,  # [B, T, COLS], of the encoder: gradients
    b_ptr,  # [B, T, d], of the encoder: inputs
    col,  # [CHUNK], channels of a
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    keys,  # [E, B, 2], int32, dropout keys of a
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
    RANGED: tl.constexpr,  # whether there are ranges: the last step is then the last unpadded key
    WHOLE: tl.constexpr,  # b has all steps, whichever a has
    NORM: tl.constexpr,  # whether b is normalised first
    DROP: tl.constexpr,  # whether elements of a are dropped
    THRESHOLD: tl.constexpr,  # the rate in 1/65536
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
                THRESHOLD=THRESHOLD,
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
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    res_keys,  # [E, B, 2], int32, dropout keys of the attention's branch
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
    RANGED: tl.constexpr,  # whether there are ranges: the last step is then the last unpadded key
    RES: tl.constexpr,  # whether elements of the attention's branch are dropped
    RES_THRESHOLD: tl.constexpr,  # their rate in 1/65536
    RES_SCALE: tl.constexpr,  # what the kept ones are multiplied by
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    M: tl.constexpr,  # rows at a time
    CHUNK: tl.constexpr,  # rows of the weights of a program
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Shares of the gradients of the input and output projections; a program per CHUNK of their rows.

    The first programs take the queries' part of the input projection, those after them the part of keys and values,
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
            THRESHOLD=RES_THRESHOLD,
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
            THRESHOLD=RES_THRESHOLD,
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
            THRESHOLD=RES_THRESHOLD,
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
    hidden_index,  # [CHUNK], numbers of hidden units
    channel,  # [WIDTH]
    DIM: tl.constexpr,  # d
    DOT: tl.constexpr,  # type of the operands of products
):
    """Both weights of some hidden units, [WIDTH, CHUNK] each."""
    mask = (channel < DIM)[:, None] & (hidden_index < 4 * DIM)[None, :]
    w1 = tl.load(w1_ptr + (e * 4 * DIM + hidden_index)[None, :] * DIM + channel[:, None], mask, 0.0)
    w2 = tl.load(w2_ptr + (e * DIM + channel)[:, None] * (4 * DIM) + hidden_index[None, :], mask, 0.0)
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
    relu_keys,  # [E, B, 2], int32, dropout keys of the hidden units
    mlp_keys,  # [E, B, 2], int32, dropout keys of the MLP's branch
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
    RES: tl.constexpr,  # whether elements of both branches are dropped
    RES_THRESHOLD: tl.constexpr,  # their rate in 1/65536
    RES_SCALE: tl.constexpr,  # what the kept ones are multiplied by
    RELU: tl.constexpr,  # whether hidden units are dropped
    RELU_THRESHOLD: tl.constexpr,  # their rate in 1/65536
    RELU_SCALE: tl.constexpr,  # what the kept ones are multiplied by
    M: tl.constexpr,  # rows at a time
    CHUNK: tl.constexpr,  # hidden units of a program
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Shares of the gradients of both layers of the MLP; a program per CHUNK of hidden units."""
    e = tl.program_id(1)
    split = tl.program_id(2)
    hidden_index = tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    real = hidden_index < 4 * DIM
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    w1, w2 = _mlp_tiles(w1_ptr, w2_ptr, e, hidden_index, channel, DIM=DIM, DOT=DOT)
    b1 = tl.load(b1_ptr + e * 4 * DIM + hidden_index, real, 0.0)
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
                mlp_keys,
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
                THRESHOLD=RES_THRESHOLD,
                SCALE=RES_SCALE,
            )
        normed, _ = normalised(tl.load(middle_ptr + m_at, mask, 0.0), channel, DIM=DIM)
        y = (normed * gain[None, :] + shift[None, :]).to(DOT)
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
                hidden_index,
                batch,
                inside,
                SIDE=QUERIES,
                LAST=LAST,
                COLS=4 * DIM,
                THRESHOLD=RELU_THRESHOLD,
                SCALE=RELU_SCALE,
            )
            hidden *= keep
            grad_hidden *= keep
        grad_hidden = tl.where(before > 0, grad_hidden, 0.0)
        first += product(tl.trans(grad_hidden.to(DOT)), normed.to(DOT), PRECISION=PRECISION)
        second += product(tl.trans(hidden.to(DOT)), grad.to(DOT), PRECISION=PRECISION)
        first_bias += tl.sum(grad_hidden, 0)
        second_bias += tl.sum(grad, 0)
    share = split * encoders + e
    at = shares_ptr + (share.to(tl.int64) * (WEIGHT_ROWS * DIM) + hidden_index)[:, None] * DIM + channel[None, :]
    mask = real[:, None] & there[None, :]
    tl.store(at + FC1 * DIM * DIM, first, mask)
    tl.store(at + FC2 * DIM * DIM, second, mask)
    bias_at = bias_shares_ptr + share * (BIASES * DIM)
    tl.store(bias_at + FC1 * DIM + hidden_index, first_bias, real)
    tl.store(bias_at + FC2 * DIM + channel, second_bias, there & (tl.program_id(0) == 0))


def weight_gradients(
    call: LayerCall, weights: LayerWeights, activations: Activations, grads: ActivationGradients
) -> LayerWeights:
    """Gradients of a layer's weights."""
    x, middle = activations.x, activations.middle
    source = x if activations.source is None else activations.source
    encoders, batch, steps, dim = x.shape
    sizes, mlp_sizes = call.sizes("projection_weights", dim), call.sizes("mlp_weights", dim)
    splits = max(1, min(MAX_SPLITS, num_blocks(batch * steps, sizes["M"]) // LEAST_BLOCKS))
    shares = torch.empty(splits, encoders, WEIGHT_ROWS.value * dim, dim, device=x.device)
    bias_shares = torch.empty(splits, encoders, BIASES.value * dim, device=x.device)
    dropout = call.dropout()
    jobs = 2 * num_blocks(dim, sizes["CHUNK"]) + num_blocks(2 * dim, sizes["CHUNK"])
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
        RES=dropout["RES"],
        RES_THRESHOLD=dropout["RES_THRESHOLD"],
        RES_SCALE=dropout["RES_SCALE"],
        **sizes,
    )
    launch(
        mlp_weights,
        (num_blocks(4 * dim, mlp_sizes["CHUNK"]), encoders, splits),
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
        mlp_keys=call.key("mlp"),
        **named_strides("g", grads.out),
        **named_strides("m", middle),
        batch=batch,
        splits=splits,
        encoders=encoders,
        LAST=call.last,
        **dropout,
        **mlp_sizes,
    )
    return launch_add_up_weights(weights, shares, bias_shares)
