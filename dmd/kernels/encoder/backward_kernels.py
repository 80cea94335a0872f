"""Triton kernels of an encoder layer, backward: gradients of activations, a program per block of rows.

What is cheap to compute again is not read from memory: layer norms, hidden units and keep masks of dropout. What the
gradients of weights are products of is written down on the way. Nothing is added atomically. Rows have S = SLOT
channels in memory, 0 past d (`dmd.kernels.common.rows`).
"""

import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.launching import launch
from dmd.kernels.common.rows import row_channels
from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import (
    QUERIES,
    count_rows,
    keep_factor,
    load_slots,
    locate_rows,
    normalised,
    normalised_backward,
    place_rows,
    store_slots,
    whole_steps,
)
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import Activations, LayerCall, WeightOperands, operand_places


@triton.jit
def _through_output(
    grad,  # [M, WIDTH], type of DOT, gradient of the output projection's result
    wo_ptr,  # [E, d, d], of the output projection
    grad_mixed_ptr,  # [E, B, Tq, S], type of DOT, written
    at,  # [M], places of rows
    inside,  # [M], which rows there are
    e,  # number of the encoder
    channel,  # [WIDTH]
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
    CHUNK: tl.constexpr,  # channels at a time
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Store the gradient of the attention's output, from that of the output projection's result."""
    there = channel < DIM
    for begin in range(0, DIM, CHUNK):
        col = begin + tl.arange(0, CHUNK)
        wo_at = wo_ptr + (e * DIM + channel)[:, None] * DIM + col[None, :]
        wo = tl.load(wo_at, there[:, None] & (col < DIM)[None, :], 0.0).to(DOT)  # [WIDTH, CHUNK]
        store_slots(grad_mixed_ptr, product(grad, wo, PRECISION=PRECISION), at, inside, col, SLOT=SLOT)


@triton.jit
def residual_mlp_backward(
    grad_ptr,  # [E, B, Tq, S], float32, gradient of the layer's output
    middle_ptr,  # [E, B, Tq, S], float32
    grad_middle_ptr,  # [E, B, Tq, S], float32, written
    grad_mixed_ptr,  # [E, B, Tq, S], type of DOT, gradient of the attention's output, written
    operands_ptr,  # [E, B, Tq, OPERANDS], type of DOT, written, see `operand_places`
    wo_ptr,  # [E, d, d], of the output projection
    gain_ptr,  # [E, d], of the layer norm before the MLP
    shift_ptr,  # [E, d]
    w1_ptr,  # [E, 4d, d]
    b1_ptr,  # [E, 4d]
    w2_ptr,  # [E, d, 4d]
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    res_keys,  # [E, B, 2], int32, dropout keys of the attention's branch
    relu_keys,  # [E, B, 2], int32, dropout keys of the hidden units
    mlp_keys,  # [E, B, 2], int32, dropout keys of the MLP's branch
    batch,  # B
    rows,  # Tq
    GRAD_HIDDEN: tl.constexpr,  # place in a row of operands: gradients of the hidden units before the ReLU, 4d
    HIDDEN: tl.constexpr,  # hidden units, 4d
    NORMED: tl.constexpr,  # the MLP's normalised input, d
    BRANCH: tl.constexpr,  # gradient of the MLP's output, d
    PROJECTED: tl.constexpr,  # gradient of the output projection's result, d
    WIDE_SLOT: tl.constexpr,  # channels of a slot of 4d
    OPERANDS: tl.constexpr,  # channels of the row
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
    WIDTH: tl.constexpr,  # d, padded to a power of two
    LAST: tl.constexpr,  # queries are of each sample's last step alone, Tq = 1
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
    """Gradients of `middle` (through both of its uses) and of the attention's output; a program per block of rows.

    Writes down the operands of the gradients of the MLP's weights, and the gradient of the output projection's result.
    """
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE=QUERIES, LAST=LAST)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, SIDE=QUERIES, LAST=LAST)
    inside = row < count
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    at = place_rows(e, sample, step, batch, rows, ROW=SLOT)
    grad = load_slots(grad_ptr, at, inside, channel, SLOT=SLOT)
    branch = grad
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
    normed, inverse = normalised(load_slots(middle_ptr, at, inside, channel, SLOT=SLOT), channel, DIM=DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    y = (normed * gain[None, :] + shift[None, :]).to(DOT)
    branch = branch.to(DOT)
    operands_at = place_rows(e, sample, step, batch, rows, ROW=OPERANDS)
    store_slots(operands_ptr + NORMED, normed, operands_at, inside, channel, SLOT=SLOT)
    store_slots(operands_ptr + BRANCH, branch, operands_at, inside, channel, SLOT=SLOT)
    grad_y = tl.zeros([M, WIDTH], tl.float32)
    for begin in range(0, 4 * DIM, CHUNK):
        hidden_index = begin + tl.arange(0, CHUNK)
        real = hidden_index < 4 * DIM
        w1_at = w1_ptr + (e * 4 * DIM + hidden_index)[:, None] * DIM + channel[None, :]
        w1 = tl.load(w1_at, real[:, None] & there[None, :], 0.0).to(DOT)  # [CHUNK, WIDTH]
        before = product(y, tl.trans(w1), PRECISION=PRECISION)
        before += tl.load(b1_ptr + e * 4 * DIM + hidden_index, real, 0.0)[None, :]
        hidden = tl.maximum(before, 0.0)
        w2_at = w2_ptr + (e * DIM + channel)[:, None] * (4 * DIM) + hidden_index[None, :]
        w2 = tl.load(w2_at, real[None, :] & there[:, None], 0.0).to(DOT)  # [WIDTH, CHUNK]
        grad_hidden = product(branch, w2, PRECISION=PRECISION)
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
        grad_hidden = tl.where(before > 0, grad_hidden, 0.0).to(DOT)
        grad_y += product(grad_hidden, w1, PRECISION=PRECISION)
        # Stored last: before that product, float32 takes half as many registers again.
        store_slots(operands_ptr + HIDDEN, hidden, operands_at, inside, hidden_index, SLOT=WIDE_SLOT)
        store_slots(operands_ptr + GRAD_HIDDEN, grad_hidden, operands_at, inside, hidden_index, SLOT=WIDE_SLOT)
    grad += normalised_backward(grad_y * gain[None, :], normed, inverse, channel, DIM=DIM)
    store_slots(grad_middle_ptr, grad, at, inside, channel, SLOT=SLOT)
    if RES:
        grad *= keep_factor(
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
    grad = grad.to(DOT)
    store_slots(operands_ptr + PROJECTED, grad, operands_at, inside, channel, SLOT=SLOT)
    _through_output(
        grad,
        wo_ptr,
        grad_mixed_ptr,
        at,
        inside,
        e,
        channel,
        DIM=DIM,
        SLOT=SLOT,
        CHUNK=CHUNK,
        DOT=DOT,
        PRECISION=PRECISION,
    )


@triton.jit
def _through_projection(
    grad_y,  # [M, WIDTH], float32, so far
    grad_ptr,  # [E, B, T, S], gradient of the projection's result
    w_ptr,  # [E, 3d, d], of the input projection
    at,  # [M], places of rows in grad_ptr
    inside,  # [M], which rows have a gradient
    e,  # number of the encoder
    channel,  # [WIDTH]
    FIRST: tl.constexpr,  # the first row of the weight
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
    CHUNK: tl.constexpr,  # rows of the weight at a time
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """grad_y plus the gradient through d columns of the input projection, [M, WIDTH]."""
    there = channel < DIM
    for begin in range(0, DIM, CHUNK):
        col = begin + tl.arange(0, CHUNK)
        grad = load_slots(grad_ptr, at, inside, col, SLOT=SLOT)
        w_at = w_ptr + (e * 3 * DIM + FIRST + col)[:, None] * DIM + channel[None, :]
        w = tl.load(w_at, (col < DIM)[:, None] & there[None, :], 0.0).to(DOT)
        grad_y += product(grad, w, PRECISION=PRECISION)
    return grad_y


@triton.jit
def project_backward(
    q_ptr,  # [E, B, Tq, S], type of DOT, gradient of the queries
    k_ptr,  # [E, B, Tk, S], type of DOT, gradient of the keys; that of the values is SLOT channels further
    grad_middle_ptr,  # [E, B, Tq, S], float32
    x_ptr,  # [E, B, T, S], float32, input of the layer
    normed_ptr,  # [E, B, T, S], type of DOT, the normalised input, written with QUERY
    grad_ptr,  # [E, B, T, S] or, of the source, [E, B, Tk, S]; float32, written
    w_ptr,  # [E, 3d, d], of the input projection: query, key, value
    gain_ptr,  # [E, d], of the layer norm before the attention
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    batch,  # B
    rows,  # Tq
    steps,  # T, or Tk of a source
    Q_ROW: tl.constexpr,  # channels of a row that the gradient of the queries is a slot of
    K_ROW: tl.constexpr,  # of that of the keys
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
    WIDTH: tl.constexpr,  # d, padded to a power of two
    SIDE: tl.constexpr,  # QUERIES or KEYS: whose lengths the output has
    QUERY: tl.constexpr,  # whether the output is x, which the queries come from
    KEY: tl.constexpr,  # whether keys and values come from it
    LAST: tl.constexpr,  # queries are of each sample's last step alone, Tq = 1
    RANGED: tl.constexpr,  # whether there are ranges: the last step is then the last unpadded key
    M: tl.constexpr,  # rows of a program
    CHUNK: tl.constexpr,  # rows of the weight at a time
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Gradient of the layer's input from those of queries (QUERY) and of keys and values (KEY).

    With QUERY the input goes through layer norm and the residual brings its own gradient. Without, it is a source that
    is normalised already. With LAST, queries and residual are of the last step alone, with RANGED of the last unpadded
    one. A program per block of rows.
    """
    e = tl.program_id(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    count = count_rows(table, e, batch, SIDE=SIDE, LAST=False)
    if tl.program_id(0) * M >= count:
        return
    sample, step = locate_rows(row, table, e, SIDE=SIDE, LAST=False)
    inside = row < count
    channel = tl.arange(0, WIDTH)
    there = channel < DIM
    asked = inside
    asked_step = step
    if LAST:
        asked_step = step * 0
        last = whole_steps(sample, asked_step, inside, table, ranges, e, batch, SIDE=SIDE, LAST=LAST, RANGED=RANGED)
        asked = inside & (step == last)
    grad = tl.zeros([M, WIDTH], tl.float32)
    if QUERY:
        grad = _through_projection(
            grad,
            grad_ptr=q_ptr,
            w_ptr=w_ptr,
            at=place_rows(e, sample, asked_step, batch, rows, ROW=Q_ROW),
            inside=asked,
            e=e,
            channel=channel,
            FIRST=0,
            DIM=DIM,
            SLOT=SLOT,
            CHUNK=CHUNK,
            DOT=DOT,
            PRECISION=PRECISION,
        )
    if KEY:
        k_at = place_rows(e, sample, step, batch, steps, ROW=K_ROW)
        grad = _through_projection(
            grad,
            grad_ptr=k_ptr,
            w_ptr=w_ptr,
            at=k_at,
            inside=inside,
            e=e,
            channel=channel,
            FIRST=DIM,
            DIM=DIM,
            SLOT=SLOT,
            CHUNK=CHUNK,
            DOT=DOT,
            PRECISION=PRECISION,
        )
        grad = _through_projection(
            grad,
            grad_ptr=k_ptr + SLOT,
            w_ptr=w_ptr,
            at=k_at,
            inside=inside,
            e=e,
            channel=channel,
            FIRST=2 * DIM,
            DIM=DIM,
            SLOT=SLOT,
            CHUNK=CHUNK,
            DOT=DOT,
            PRECISION=PRECISION,
        )
    grad *= tl.load(gain_ptr + e * DIM + channel, there, 0.0)[None, :]
    at = place_rows(e, sample, step, batch, steps, ROW=SLOT)
    if QUERY:
        normed, inverse = normalised(load_slots(x_ptr, at, inside, channel, SLOT=SLOT), channel, DIM=DIM)
        store_slots(normed_ptr, normed, at, inside, channel, SLOT=SLOT)
        grad = normalised_backward(grad, normed, inverse, channel, DIM=DIM)
        middle_at = place_rows(e, sample, asked_step, batch, rows, ROW=SLOT)
        grad += load_slots(grad_middle_ptr, middle_at, asked, channel, SLOT=SLOT)
    store_slots(grad_ptr, grad, at, inside, channel, SLOT=SLOT)


def launch_residual_mlp_backward(
    call: LayerCall,
    weights: LayerWeights,
    activations: Activations,
    grad: Tensor,
    *,
    grad_middle: Tensor,
    grad_mixed: Tensor,
    operands: Tensor,
) -> None:
    """Fill the gradients of `middle` and of the attention's output from that of the layer's output, [E, B, Tq, S].

    And `operands`, `others` of `WeightOperands`.
    """
    middle = activations.middle
    encoders, batch, rows, _ = middle.shape
    sizes = call.sizes("residual_mlp_backward")
    launch(
        residual_mlp_backward,
        (num_blocks(batch * rows, sizes["M"]), encoders),
        grad_ptr=grad,
        middle_ptr=middle,
        grad_middle_ptr=grad_middle,
        grad_mixed_ptr=grad_mixed,
        operands_ptr=operands,
        wo_ptr=weights.out_proj_weight,
        gain_ptr=weights.norm_weight[1],
        shift_ptr=weights.norm_bias[1],
        w1_ptr=weights.fc1_weight,
        b1_ptr=weights.fc1_bias,
        w2_ptr=weights.fc2_weight,
        table=call.table,
        **call.dropout_keys(),
        batch=batch,
        rows=rows,
        **operand_places(call.dim),
        LAST=call.last,
        **call.dropout(),
        **sizes,
    )


def launch_project_backward(
    call: LayerCall,
    weights: LayerWeights,
    x: Tensor,
    operands: WeightOperands,
    grad_middle: Tensor,
    out: Tensor,
    *,
    side: int,
    query: bool,
    key: bool,
) -> None:
    """Fill `out`, the gradient of x [E, B, T, S] or of the source [E, B, Tk, S]; with x, `operands.normed` too.

    Args:
        x: input of the layer.
        operands: of which the gradients of queries, keys and values are read.
        grad_middle: [E, B, Tq, S], what the residual brings.
        side: QUERIES or KEYS of `triton_rows`: whose lengths `out` has.
        query: whether `out` is the gradient of x, which the queries come from.
        key: whether keys and values come from it.
    """
    encoders, batch, steps, _ = out.shape
    sizes = call.sizes("project_backward")
    launch(
        project_backward,
        (num_blocks(batch * steps, sizes["M"]), encoders),
        q_ptr=operands.grad_query,
        k_ptr=operands.grad_key,
        grad_middle_ptr=grad_middle,
        x_ptr=x,
        normed_ptr=operands.normed,
        grad_ptr=out,
        w_ptr=weights.in_proj_weight,
        gain_ptr=weights.norm_weight,
        table=call.table,
        ranges=call.attention.ranges,
        batch=batch,
        rows=grad_middle.shape[2],
        steps=steps,
        Q_ROW=row_channels(operands.grad_query),
        K_ROW=row_channels(operands.grad_key),
        SIDE=side,
        QUERY=query,
        KEY=key,
        LAST=call.last,
        RANGED=call.attention.ranged,
        **sizes,
    )
