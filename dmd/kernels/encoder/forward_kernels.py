"""Triton kernels of an encoder layer, forward: all encoders of a stage in one launch, a program per block of rows.

Rows are (sample, step) pairs of one encoder, so that encoders of different lengths leave no program idle. Activations
are rows of S = SLOT channels in memory, 0 past d (`dmd.kernels.common.rows`). The residual stream is float32, products
take DOT operands and accumulate in float32.
"""

import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.launching import launch
from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import (
    QUERIES,
    count_rows,
    keep_factor,
    load_slots,
    locate_rows,
    normalised,
    place_rows,
    store_slots,
    whole_steps,
)
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import LayerCall


@triton.jit
def project(
    x_ptr,  # [E, B, T, S], float32
    out_ptr,  # [E, B, Tq or T, PARTS * S], type of DOT, written
    w_ptr,  # [E, 3d, d], of the input projection: query, key, value
    bias_ptr,  # [E, 3d]
    gain_ptr,  # [E, d], of the layer norm before the attention
    shift_ptr,  # [E, d]
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    batch,  # B
    steps,  # T
    out_steps,  # Tq or T
    FIRST: tl.constexpr,  # the first part of the weight: 0 query, 1 key, 2 value
    PARTS: tl.constexpr,  # of the weight, and slots of the output
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
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
    """Layer norm, and PARTS parts of the input projection; a program per block of rows."""
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
    x_at = place_rows(e, sample, whole, batch, steps, ROW=SLOT)
    x = load_slots(x_ptr, x_at, inside, channel, SLOT=SLOT)
    if NORM:
        x, _ = normalised(x, channel, DIM=DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    y = (x * gain[None, :] + shift[None, :]).to(DOT)
    out_at = place_rows(e, sample, step, batch, out_steps, ROW=PARTS * SLOT)
    for part in tl.static_range(PARTS):
        for begin in range(0, SLOT, CHUNK):
            col = begin + tl.arange(0, CHUNK)
            real = col < DIM
            w_row = (FIRST + part) * DIM + col
            w_at = w_ptr + (e * 3 * DIM + w_row)[None, :] * DIM + channel[:, None]
            w = tl.load(w_at, real[None, :] & there[:, None], 0.0).to(DOT)
            bias = tl.load(bias_ptr + e * 3 * DIM + w_row, real, 0.0)
            out = product(y, w, PRECISION=PRECISION) + bias[None, :]
            store_slots(out_ptr + part * SLOT, out, out_at, inside, col, SLOT=SLOT)


@triton.jit
def residual_mlp(
    mixed_ptr,  # [E, B, Tq, S], type of DOT, output of the attention
    x_ptr,  # [E, B, T, S], float32, input of the layer
    middle_ptr,  # [E, B, Tq, S], float32, written
    out_ptr,  # [E, B, Tq, S], float32, written
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
    batch,  # B
    steps,  # T
    rows,  # Tq
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
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
    at = place_rows(e, sample, step, batch, rows, ROW=SLOT)
    branch = tl.zeros([M, WIDTH], tl.float32) + tl.load(bo_ptr + e * DIM + channel, there, 0.0)[None, :]
    for begin in range(0, DIM, CHUNK):
        col = begin + tl.arange(0, CHUNK)
        mixed = load_slots(mixed_ptr, at, inside, col, SLOT=SLOT)
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
    x_at = place_rows(e, sample, whole, batch, steps, ROW=SLOT)
    middle = load_slots(x_ptr, x_at, inside, channel, SLOT=SLOT) + branch
    store_slots(middle_ptr, middle, at, inside, channel, SLOT=SLOT)
    normed, _ = normalised(middle, channel, DIM=DIM)
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
    store_slots(out_ptr, middle + branch, at, inside, channel, SLOT=SLOT)


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
    """Fill `out` [E, B, T or 1, slots] with some parts of the input projection of x [E, B, T, S].

    Args:
        first: the first part of `in_proj_weight`, 0 query, 1 key, 2 value; as many follow as `out` has slots.
        side: QUERIES or KEYS of `triton_rows`: whose lengths x has.
        last: only each sample's last step is wanted.
        norm: whether x is normalised first; otherwise it is already.
    """
    encoders, batch, steps, _ = x.shape
    sizes = call.sizes("project")
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
        batch=batch,
        steps=steps,
        out_steps=out.shape[2],
        FIRST=first,
        PARTS=out.shape[3] // call.slot,
        SIDE=side,
        LAST=last,
        RANGED=call.attention.ranged,
        NORM=norm,
        **sizes,
    )


def launch_residual_mlp(
    call: LayerCall, weights: LayerWeights, x: Tensor, mixed: Tensor, *, middle: Tensor, out: Tensor
) -> None:
    """Fill `middle` and `out` [E, B, Tq, S] from x [E, B, T, S] and the attention's output `mixed` [E, B, Tq, S]."""
    encoders, batch, rows, _ = middle.shape
    sizes = call.sizes("residual_mlp")
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
        batch=batch,
        steps=x.shape[2],
        rows=rows,
        LAST=call.last,
        RANGED=call.attention.ranged,
        **call.dropout(),
        **sizes,
    )
