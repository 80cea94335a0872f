"""Triton kernels of an encoder layer, forward: all encoders of a stage in one launch, a program per block of rows.

Rows are (sample, step) pairs of one encoder, so that encoders of different lengths leave no program idle. Activations
are [E, B, T, channels]; the residual stream is float32, products take DOT operands and accumulate in float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.launching import launch, named_strides
from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import QUERIES, count_rows, keep_factor, locate_rows, normalised, whole_steps
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import LayerCall


@triton.jit
def project(
    x_ptr,  # [E, B, T, d], float32
    out_ptr,  # [E, B, Tq or T, COLS], type of DOT, written
    w_ptr,  # [E, 3d, d], of the input projection: query, key, value
    bias_ptr,  # [E, 3d]
    gain_ptr,  # [E, d], of the layer norm before the attention
    shift_ptr,  # [E, d]
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    x_e,  # elements between encoders, of x
    x_b,  # between samples
    x_t,  # between steps
    o_e,  # elements between encoders, of the output
    o_b,  # between samples
    o_t,  # between steps
    batch,  # B
    FIRST: tl.constexpr,  # the first row of the weight
    COLS: tl.constexpr,  # rows of the weight, and channels of the output
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    SIDE: tl.constexpr,  # QUERIES or KEYS: whose lengths x has
    LAST: tl.constexpr,  # only each sample's last step is wanted
    RANGED: tl.constexpr,  # whether there are ranges: the last step is then the last unpadded key
    NORM: tl.constexpr,  # whether x is normalised first; otherwise it is already
    M: tl.constexpr,  # rows of a program
    CHUNK: tl.constexpr,  # channels of the output at a time
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Layer norm, and COLS columns of the input projection; a program per block of rows."""
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE=SIDE, LAST=LAST)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, SIDE=SIDE, LAST=LAST)
    inside = row < count
    whole = whole_steps(sample, step, inside, table, ranges, e, batch, SIDE=SIDE, LAST=LAST, RANGED=RANGED)
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    x_at = x_ptr + e.to(tl.int64) * x_e + (sample * x_b + whole * x_t)[:, None] + channel[None, :]
    x = tl.load(x_at, inside[:, None] & there[None, :], 0.0).to(tl.float32)
    if NORM:
        x, _ = normalised(x, channel, DIM=DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    y = (x * gain[None, :] + shift[None, :]).to(DOT)
    o_at = out_ptr + e.to(tl.int64) * o_e + (sample * o_b + step * o_t)[:, None]
    for begin in range(0, COLS, CHUNK):
        col = begin + tl.arange(0, CHUNK)
        w_at = w_ptr + (e * 3 * DIM + FIRST + col)[None, :] * DIM + channel[:, None]
        w = tl.load(w_at, (col < COLS)[None, :] & there[:, None], 0.0).to(DOT)
        bias = tl.load(bias_ptr + e * 3 * DIM + FIRST + col, col < COLS, 0.0)
        out = product(y, w, PRECISION=PRECISION) + bias[None, :]
        tl.store(o_at + col[None, :], out.to(out_ptr.dtype.element_ty), inside[:, None] & (col < COLS)[None, :])


@triton.jit
def residual_mlp(
    mixed_ptr,  # [E, B, Tq, d], type of DOT, output of the attention
    x_ptr,  # [E, B, T, d], float32, input of the layer
    middle_ptr,  # [E, B, Tq, d], float32, written
    out_ptr,  # [E, B, Tq, d], float32, written
    wo_ptr,  # [E, d, d], of the output projection
    bo_ptr,  # [E, d]
    gain_ptr,  # [E, d], of the layer norm before the MLP
    shift_ptr,  # [E, d]
    w1_ptr,  # [E, 4d, d]
    b1_ptr,  # [E, 4d]
    w2_ptr,  # [E, d, 4d]
    b2_ptr,  # [E, d]
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    res_keys,  # [E, B, 2], int32, dropout keys of the attention's branch
    relu_keys,  # [E, B, 2], int32, dropout keys of the hidden units
    mlp_keys,  # [E, B, 2], int32, dropout keys of the MLP's branch
    x_e,  # elements between encoders, of x
    x_b,  # between samples
    x_t,  # between steps
    m_e,  # elements between encoders, of all other activations
    m_b,  # between samples
    m_t,  # between steps
    batch,  # B
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    LAST: tl.constexpr,  # queries are of each sample's last step alone, Tq = 1
    RANGED: tl.constexpr,  # whether there are ranges: the last step is then the last unpadded key
    RES: tl.constexpr,  # whether elements of both branches are dropped
    RES_THRESHOLD: tl.constexpr,  # their rate in 1/65536
    RES_SCALE: tl.constexpr,  # what the kept ones are multiplied by
    RELU: tl.constexpr,  # whether hidden units are dropped
    RELU_THRESHOLD: tl.constexpr,  # their rate in 1/65536
    RELU_SCALE: tl.constexpr,  # what the kept ones are multiplied by
    M: tl.constexpr,  # rows of a program
    CHUNK: tl.constexpr,  # channels or hidden units at a time
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """middle = x + dropout(output projection(mixed)); out = middle + dropout(MLP(layer norm(middle))).

    A program per block of rows.
    """
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE=QUERIES, LAST=LAST)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, SIDE=QUERIES, LAST=LAST)
    inside = row < count
    whole = whole_steps(sample, step, inside, table, ranges, e, batch, SIDE=QUERIES, LAST=LAST, RANGED=RANGED)
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
        branch += product(mixed, wo, PRECISION=PRECISION)
    if RES:
        branch *= keep_factor(
            res_keys,
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
    x_at = x_ptr + e.to(tl.int64) * x_e + (sample * x_b + whole * x_t)[:, None] + channel[None, :]
    middle = tl.load(x_at, mask, 0.0) + branch
    tl.store(middle_ptr + at, middle, mask)
    normed, _ = normalised(tl.where(mask, middle, 0.0), channel, DIM=DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    y = (normed * gain[None, :] + shift[None, :]).to(DOT)
    branch = tl.zeros([M, WIDTH], tl.float32) + tl.load(b2_ptr + e * DIM + channel, there, 0.0)[None, :]
    for begin in range(0, 4 * DIM, CHUNK):
        hidden_index = begin + tl.arange(0, CHUNK)
        real = hidden_index < 4 * DIM
        w1_at = w1_ptr + (e * 4 * DIM + hidden_index)[None, :] * DIM + channel[:, None]
        w1 = tl.load(w1_at, real[None, :] & there[:, None], 0.0).to(DOT)
        hidden = product(y, w1, PRECISION=PRECISION) + tl.load(b1_ptr + e * 4 * DIM + hidden_index, real, 0.0)[None, :]
        hidden = tl.maximum(hidden, 0.0)
        if RELU:
            hidden *= keep_factor(
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
        w2_at = w2_ptr + (e * DIM + channel)[None, :] * (4 * DIM) + hidden_index[:, None]
        w2 = tl.load(w2_at, real[:, None] & there[None, :], 0.0).to(DOT)
        branch += product(hidden.to(DOT), w2, PRECISION=PRECISION)
    if RES:
        branch *= keep_factor(
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
    tl.store(out_ptr + at, middle + branch, mask)


def launch_project(
    call: LayerCall,
    weights: LayerWeights,
    x: Tensor,
    out: Tensor,
    *,
    first: int,
    side: int,
    last: bool,
    norm: bool,
) -> None:
    """Fill `out` [E, B, T or 1, channels] with some columns of the input projection of x [E, B, T, d].

    Args:
        first: the first row of `in_proj_weight`; as many follow as `out` has channels.
        side: QUERIES or KEYS of `triton_rows`: whose lengths x has.
        last: only each sample's last step is wanted.
        norm: whether x is normalised first; otherwise it is already.
    """
    encoders, batch, steps, dim = x.shape
    sizes = call.sizes("project", dim)
    launch(
        project,
        (num_blocks(batch * (1 if last else steps), sizes["M"]), encoders),
        x_ptr=x,
        out_ptr=out,
        w_ptr=weights.in_proj_weight,
        bias_ptr=weights.in_proj_bias,
        gain_ptr=weights.norm_weight,
        shift_ptr=weights.norm_bias,
        table=call.table,
        ranges=call.attention.ranges,
        **named_strides("x", x),
        **named_strides("o", out),
        batch=batch,
        FIRST=first,
        COLS=out.shape[3],
        SIDE=side,
        LAST=last,
        RANGED=call.attention.ranged,
        NORM=norm,
        **sizes,
    )


def launch_residual_mlp(
    call: LayerCall, weights: LayerWeights, x: Tensor, mixed: Tensor, *, middle: Tensor, out: Tensor
) -> None:
    """Fill `middle` and `out` [E, B, Tq, d] from x [E, B, T, d] and the attention's output `mixed` [E, B, Tq, d]."""
    encoders, batch, rows, dim = middle.shape
    sizes = call.sizes("residual_mlp", dim)
    launch(
        residual_mlp,
        (num_blocks(batch * rows, sizes["M"]), encoders),
        mixed_ptr=mixed,
        x_ptr=x,
        middle_ptr=middle,
        out_ptr=out,
        wo_ptr=weights.out_proj_weight,
        bo_ptr=weights.out_proj_bias,
        gain_ptr=weights.norm_weight[1],
        shift_ptr=weights.norm_bias[1],
        w1_ptr=weights.fc1_weight,
        b1_ptr=weights.fc1_bias,
        w2_ptr=weights.fc2_weight,
        b2_ptr=weights.fc2_bias,
        table=call.table,
        ranges=call.attention.ranges,
        **call.dropout_keys(),
        **named_strides("x", x),
        **named_strides("m", middle),
        batch=batch,
        LAST=call.last,
        RANGED=call.attention.ranged,
        **call.dropout(),
        **sizes,
    )
