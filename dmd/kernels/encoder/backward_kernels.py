"""Triton kernels of an encoder layer, backward: gradients of activations, a program per block of rows.

What is cheap to compute again is not read from memory: layer norms, hidden units and keep masks of dropout. What the
gradients of weights are products of is written down on the way. Nothing is added atomically.
"""

import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.launching import launch, named_strides
from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import (
    QUERIES,
    count_rows,
    keep_factor,
    locate_rows,
    normalised,
    normalised_backward,
    whole_steps,
)
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import ActivationGradients, Activations, LayerCall, operand_places


@triton.jit
def _through_output(
    grad,  # [M, WIDTH], type of DOT, gradient of the output projection's result
    wo_ptr,  # [E, d, d], of the output projection
    grad_mixed_ptr,  # [E, B, Tq, d], type of DOT, written
    row_at,  # [M], places of rows
    inside,  # [M], which rows there are
    e,  # number of the encoder
    channel,  # [WIDTH]
    DIM: tl.constexpr,  # d
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
        grad_mixed = product(grad, wo, PRECISION=PRECISION)
        mask = inside[:, None] & (col < DIM)[None, :]
        mixed_at = grad_mixed_ptr + row_at[:, None] + col[None, :]
        tl.store(mixed_at, grad_mixed.to(grad_mixed_ptr.dtype.element_ty), mask)


@triton.jit
def residual_mlp_backward(
    grad_ptr,  # [E, B, Tq, d], float32, gradient of the layer's output
    middle_ptr,  # [E, B, Tq, d], float32
    grad_middle_ptr,  # [E, B, Tq, d], float32, written
    grad_mixed_ptr,  # [E, B, Tq, d], type of DOT, gradient of the attention's output, written
    mixed_ptr,  # [E, B, Tq, d], type of DOT, output of the attention
    operands_ptr,  # [E, B, Tq, ...], type of DOT, written, see `operand_places`
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
    g_e,  # elements between encoders, of the gradient of the output
    g_b,  # between samples
    g_t,  # between steps
    m_e,  # elements between encoders, of all other activations
    m_b,  # between samples
    m_t,  # between steps
    batch,  # B
    rows,  # Tq
    GRAD_HIDDEN: tl.constexpr,  # place in a row of operands: gradients of the hidden units before the ReLU, 4d
    HIDDEN: tl.constexpr,  # hidden units, 4d
    NORMED: tl.constexpr,  # the MLP's normalised input, d
    BRANCH: tl.constexpr,  # gradient of the MLP's output, d
    PROJECTED: tl.constexpr,  # gradient of the output projection's result, d
    MIXED: tl.constexpr,  # output of the attention, d
    SLOT: tl.constexpr,  # d, padded
    WIDE_SLOT: tl.constexpr,  # 4d, padded
    DIM: tl.constexpr,  # d
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
    mask = inside[:, None] & there[None, :]
    at = e.to(tl.int64) * m_e + (sample * m_b + step * m_t)[:, None] + channel[None, :]
    g_at = e.to(tl.int64) * g_e + (sample * g_b + step * g_t)[:, None] + channel[None, :]
    grad = tl.load(grad_ptr + g_at, mask, 0.0)
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
    normed, inverse = normalised(tl.load(middle_ptr + at, mask, 0.0), channel, DIM=DIM)
    gain = tl.load(gain_ptr + e * DIM + channel, there, 0.0)
    shift = tl.load(shift_ptr + e * DIM + channel, there, 0.0)
    y = (normed * gain[None, :] + shift[None, :]).to(DOT)
    branch = branch.to(DOT)
    operands_ptr += e.to(tl.int64) * batch * rows * (2 * WIDE_SLOT + 4 * SLOT)
    place = ((sample * rows + step) * (2 * WIDE_SLOT + 4 * SLOT))[:, None] + channel[None, :]
    slot = inside[:, None] & (channel < SLOT)[None, :]
    tl.store(operands_ptr + NORMED + place, normed.to(DOT), slot)
    tl.store(operands_ptr + BRANCH + place, branch, slot)
    tl.store(operands_ptr + MIXED + place, tl.load(mixed_ptr + at, mask, 0.0), slot)
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
        hidden_at = ((sample * rows + step) * (2 * WIDE_SLOT + 4 * SLOT))[:, None] + hidden_index[None, :]
        grad_y += product(grad_hidden, w1, PRECISION=PRECISION)
        # Stored last: before that product, float32 takes half as many registers again.
        tl.store(operands_ptr + HIDDEN + hidden_at, hidden.to(DOT), inside[:, None] & real[None, :])
        tl.store(operands_ptr + GRAD_HIDDEN + hidden_at, grad_hidden, inside[:, None] & real[None, :])
    grad += normalised_backward(grad_y * gain[None, :], normed, inverse, DIM=DIM)
    tl.store(grad_middle_ptr + at, grad, mask)
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
    grad = tl.where(mask, grad, 0.0).to(DOT)
    place = ((sample * rows + step) * (2 * WIDE_SLOT + 4 * SLOT))[:, None] + channel[None, :]
    tl.store(operands_ptr + PROJECTED + place, grad, slot)
    row_at = e.to(tl.int64) * m_e + sample * m_b + step * m_t
    _through_output(
        grad, wo_ptr, grad_mixed_ptr, row_at, inside, e, channel, DIM=DIM, CHUNK=CHUNK, DOT=DOT, PRECISION=PRECISION
    )


@triton.jit
def _through_projection(
    grad_y,  # [M, WIDTH], float32, so far
    grad_ptr,  # [B, T, d], gradient of the projection's result
    w_ptr,  # [E, 3d, d], of the input projection
    at,  # [M], places of rows in grad_ptr
    inside,  # [M], which rows have a gradient
    e,  # number of the encoder
    channel,  # [WIDTH]
    FIRST: tl.constexpr,  # the first row of the weight
    DIM: tl.constexpr,  # d
    CHUNK: tl.constexpr,  # rows of the weight at a time
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """grad_y plus the gradient through d columns of the input projection, [M, WIDTH]."""
    there = channel < DIM
    for begin in range(0, DIM, CHUNK):
        col = begin + tl.arange(0, CHUNK)
        grad = tl.load(grad_ptr + at[:, None] + col[None, :], inside[:, None] & (col < DIM)[None, :], 0.0)
        w_at = w_ptr + (e * 3 * DIM + FIRST + col)[:, None] * DIM + channel[None, :]
        w = tl.load(w_at, (col < DIM)[:, None] & there[None, :], 0.0).to(DOT)
        grad_y += product(grad.to(DOT), w, PRECISION=PRECISION)
    return grad_y


@triton.jit
def project_backward(
    q_ptr,  # [E, B, Tq, d], type of DOT, gradient of the queries
    k_ptr,  # [E, B, Tk, d], type of DOT, gradient of the keys
    v_ptr,  # [E, B, Tk, d], type of DOT, gradient of the values; with the strides of that of the keys
    grad_middle_ptr,  # [E, B, Tq, d], float32
    x_ptr,  # [E, B, T, d], float32, input of the layer
    normed_ptr,  # [E, B, T, d], type of DOT, the normalised input, written with QUERY
    grad_ptr,  # [E, B, T, d] or, of the source, [E, B, Tk, d]; float32, written
    w_ptr,  # [E, 3d, d], of the input projection: query, key, value
    gain_ptr,  # [E, d], of the layer norm before the attention
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    q_e,  # elements between encoders, of the gradient of the queries
    q_b,  # between samples
    q_t,  # between steps
    k_e,  # elements between encoders, of that of the keys
    k_b,  # between samples
    k_t,  # between steps
    m_e,  # elements between encoders, of that of middle
    m_b,  # between samples
    m_t,  # between steps
    x_e,  # elements between encoders, of x
    x_b,  # between samples
    x_t,  # between steps
    n_e,  # elements between encoders, of the normalised input
    n_b,  # between samples
    n_t,  # between steps
    g_e,  # elements between encoders, of the output
    g_b,  # between samples
    g_t,  # between steps
    batch,  # B
    DIM: tl.constexpr,  # d
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
    mask = inside[:, None] & there[None, :]
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
            grad_ptr=q_ptr + e.to(tl.int64) * q_e,
            w_ptr=w_ptr,
            at=sample * q_b + asked_step * q_t,
            inside=asked,
            e=e,
            channel=channel,
            FIRST=0,
            DIM=DIM,
            CHUNK=CHUNK,
            DOT=DOT,
            PRECISION=PRECISION,
        )
    if KEY:
        grad = _through_projection(
            grad,
            grad_ptr=k_ptr + e.to(tl.int64) * k_e,
            w_ptr=w_ptr,
            at=sample * k_b + step * k_t,
            inside=inside,
            e=e,
            channel=channel,
            FIRST=DIM,
            DIM=DIM,
            CHUNK=CHUNK,
            DOT=DOT,
            PRECISION=PRECISION,
        )
        grad = _through_projection(
            grad,
            grad_ptr=v_ptr + e.to(tl.int64) * k_e,
            w_ptr=w_ptr,
            at=sample * k_b + step * k_t,
            inside=inside,
            e=e,
            channel=channel,
            FIRST=2 * DIM,
            DIM=DIM,
            CHUNK=CHUNK,
            DOT=DOT,
            PRECISION=PRECISION,
        )
    grad *= tl.load(gain_ptr + e * DIM + channel, there, 0.0)[None, :]
    if QUERY:
        x_at = x_ptr + e.to(tl.int64) * x_e + (sample * x_b + step * x_t)[:, None] + channel[None, :]
        normed, inverse = normalised(tl.load(x_at, mask, 0.0), channel, DIM=DIM)
        n_at = normed_ptr + e.to(tl.int64) * n_e + (sample * n_b + step * n_t)[:, None] + channel[None, :]
        tl.store(n_at, normed.to(DOT), mask)
        grad = normalised_backward(grad, normed, inverse, DIM=DIM)
        m_at = e.to(tl.int64) * m_e + (sample * m_b + asked_step * m_t)[:, None] + channel[None, :]
        grad += tl.load(grad_middle_ptr + m_at, asked[:, None] & there[None, :], 0.0)
    g_at = grad_ptr + e.to(tl.int64) * g_e + (sample * g_b + step * g_t)[:, None] + channel[None, :]
    tl.store(g_at, grad, mask)


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
    """Fill the gradients of `middle` and of the attention's output from that of the layer's output, [E, B, Tq, d].

    And `operands` of `ActivationGradients`, for the gradients of weights.
    """
    middle = activations.middle
    encoders, batch, rows, dim = middle.shape
    sizes = call.sizes("residual_mlp_backward", dim)
    launch(
        residual_mlp_backward,
        (num_blocks(batch * rows, sizes["M"]), encoders),
        grad_ptr=grad,
        middle_ptr=middle,
        grad_middle_ptr=grad_middle,
        grad_mixed_ptr=grad_mixed,
        mixed_ptr=activations.mixed,
        operands_ptr=operands,
        wo_ptr=weights.out_proj_weight,
        gain_ptr=weights.norm_weight[1],
        shift_ptr=weights.norm_bias[1],
        w1_ptr=weights.fc1_weight,
        b1_ptr=weights.fc1_bias,
        w2_ptr=weights.fc2_weight,
        table=call.table,
        **call.dropout_keys(),
        **named_strides("g", grad),
        **named_strides("m", middle),
        batch=batch,
        rows=rows,
        **operand_places(dim),
        LAST=call.last,
        **call.dropout(),
        **sizes,
    )


def launch_project_backward(
    call: LayerCall,
    weights: LayerWeights,
    x: Tensor,
    grads: ActivationGradients,
    grad_middle: Tensor,
    out: Tensor,
    *,
    side: int,
    query: bool,
    key: bool,
) -> None:
    """Fill `out`, the gradient of x [E, B, T, d] or of the source [E, B, Tk, d]; with x, `grads.normed` too.

    Args:
        x: input of the layer.
        grad_middle: [E, B, Tq, d], what the residual brings.
        side: QUERIES or KEYS of `triton_rows`: whose lengths `out` has.
        query: whether `out` is the gradient of x, which the queries come from.
        key: whether keys and values come from it.
    """
    encoders, batch, steps, dim = out.shape
    sizes = call.sizes("project_backward", dim)
    launch(
        project_backward,
        (num_blocks(batch * steps, sizes["M"]), encoders),
        q_ptr=grads.query,
        k_ptr=grads.key,
        v_ptr=grads.value,
        grad_middle_ptr=grad_middle,
        x_ptr=x,
        normed_ptr=grads.normed,
        grad_ptr=out,
        w_ptr=weights.in_proj_weight,
        gain_ptr=weights.norm_weight,
        table=call.table,
        ranges=call.attention.ranges,
        **named_strides("q", grads.query),
        **named_strides("k", grads.key),
        **named_strides("m", grad_middle),
        **named_strides("x", x),
        **named_strides("n", grads.normed),
        **named_strides("g", out),
        batch=batch,
        SIDE=side,
        QUERY=query,
        KEY=key,
        LAST=call.last,
        RANGED=call.attention.ranged,
        **sizes,
    )
