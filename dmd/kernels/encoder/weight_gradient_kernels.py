"""A Triton kernel of an encoder layer, backward: gradients of its weights, as products of stored operands.

Each gradient of a weight is Y^T X, a sum over the rows: Y is the gradient of a linear layer's output, X its input. The
backward kernels store both in the type of products. The gradient of a bias is the sum of Y. Each has some programs that
take a share of an encoder's rows each (no atomics), and fills its part of `shares` and `bias_shares`;
`dmd.kernels.encoder.weight_sum_kernels` adds them up.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.launching import launch, named_strides
from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import COLUMNS, KEYS, QUERIES, whole_steps
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import (
    SLOT_CHANNELS,
    ActivationGradients,
    LayerCall,
    operand_places,
    slots,
)
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

WAVE = 528
"""Most programs that share the rows: four for each multiprocessor of an H100. Other cards run as many, so that they add
up in the same order."""
LEAST_BLOCKS = 4
"""Blocks of M rows of a share, at least."""
ONES = tl.constexpr(16)
"""Columns of the ones that sum up Y: the fewest that a matrix product takes."""


@triton.jit
def weight_shares(
    q_ptr,  # [E, B, Tq, d], gradient of the queries; this and all operands are of the type of products
    k_ptr,  # [E, B, Tk, d], gradient of the keys; that of the values is SLOT channels further
    x_ptr,  # [E, B, T, d], normalised input of the layer
    source_ptr,  # [E, B, Tk, d], normalised, what keys and values come from; may be x
    operands_ptr,  # [E, B, Tq, ...], see `operand_places`
    shares_ptr,  # [splits, E, 12d, d], float32, written
    bias_shares_ptr,  # [splits, E, 9d], float32, written
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    q_e,  # elements between encoders, of the gradient of the queries
    q_b,  # between samples
    q_t,  # between steps
    k_e,  # elements between encoders, of that of the keys
    k_b,  # between samples
    k_t,  # between steps
    x_e,  # elements between encoders, of x
    x_b,  # between samples
    x_t,  # between steps
    s_e,  # elements between encoders, of the source
    s_b,  # between samples
    s_t,  # between steps
    o_e,  # elements between encoders, of the operands
    o_b,  # between samples
    o_t,  # between steps
    batch,  # B
    share_rows,  # rows of a share, a multiple of M
    encoders,  # E
    LAST: tl.constexpr,  # queries are of each sample's last step alone, Tq = 1
    RANGED: tl.constexpr,  # whether there are ranges: the last step is then the last unpadded key
    GRAD_HIDDEN: tl.constexpr,  # place in a row of operands: gradients of the hidden units before the ReLU, 4d
    HIDDEN: tl.constexpr,  # hidden units, 4d
    NORMED: tl.constexpr,  # the MLP's normalised input, d
    BRANCH: tl.constexpr,  # gradient of the MLP's output, d
    PROJECTED: tl.constexpr,  # gradient of the output projection's result, d
    MIXED: tl.constexpr,  # output of the attention, d
    SLOT: tl.constexpr,  # d, padded to a multiple of ALIGNED
    WIDE_SLOT: tl.constexpr,  # 4d, padded
    ALIGNED: tl.constexpr,  # elements: every row of an operand begins at a multiple of so many
    DIM: tl.constexpr,  # d
    WIDTH: tl.constexpr,  # d, padded to a power of two
    M: tl.constexpr,  # rows at a time
    CHUNK: tl.constexpr,  # channels of Y of a program
    DOT: tl.constexpr,  # type of the operands of products
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Shares of the gradients of all weights; a program per CHUNK of channels of Y, encoder and share.

    The first programs take queries, keys, values and output projection, then come the MLP's layers, of which the second
    is transposed: its Y is the hidden units, so that the last programs take its bias alone. Channels past d are not
    masked: they change no other row or column of a product.
    """
    narrow: tl.constexpr = (DIM + CHUNK - 1) // CHUNK
    wide: tl.constexpr = (4 * DIM + CHUNK - 1) // CHUNK
    job = tl.program_id(0)
    e = tl.program_id(1)
    split = tl.program_id(2)
    far = e.to(tl.int64)
    steps = 1
    if not LAST:
        steps = tl.load(table + COLUMNS * e + QUERIES)
    part = job // narrow
    block = job % narrow
    # Rows of a weight and biases that Y has, and the first of both in the shares.
    weight_rows = DIM
    biases = DIM
    first = part * DIM
    if part == IN_PROJ:
        y_ptr = q_ptr + far * q_e
        x_ptr += far * x_e
        y_b, y_t = q_b, q_t
    elif part < OUT_PROJ:
        steps = tl.load(table + COLUMNS * e + KEYS)
        y_ptr = k_ptr + far * k_e + (part - IN_PROJ_KEYS) * SLOT
        x_ptr = source_ptr + far * s_e
        y_b, y_t, x_b, x_t = k_b, k_t, s_b, s_t
    else:
        y_ptr = operands_ptr + far * o_e
        x_ptr = y_ptr
        y_b, y_t, x_b, x_t = o_b, o_t, o_b, o_t
        if part == OUT_PROJ:
            y_ptr += PROJECTED
            x_ptr += MIXED
        elif job < 4 * narrow + wide:
            y_ptr += GRAD_HIDDEN
            x_ptr += NORMED
            block = job - 4 * narrow
            weight_rows, biases = 4 * DIM, 4 * DIM
            first = FC1 * DIM
        elif job < 4 * narrow + 2 * wide:
            y_ptr += HIDDEN
            x_ptr += BRANCH
            block = job - 4 * narrow - wide
            weight_rows, biases = 4 * DIM, 0
            first = FC2 * DIM
        else:
            y_ptr += BRANCH
            x_ptr += BRANCH
            block = job - 4 * narrow - 2 * wide
            weight_rows, biases = 0, DIM
            first = FC2 * DIM
    slot = tl.where((part <= OUT_PROJ) | (weight_rows == 0), SLOT, WIDE_SLOT)
    channel = tl.arange(0, WIDTH)
    col = block * CHUNK + tl.arange(0, CHUNK)
    there = channel < SLOT
    real = col < tl.multiple_of(slot, ALIGNED)
    total = tl.zeros([CHUNK, WIDTH], tl.float32)
    bias = tl.zeros([CHUNK, ONES], tl.float32)
    ones = tl.full([M, ONES], 1.0, tl.float32).to(DOT)
    row = split * share_rows + tl.arange(0, M)
    sample, step = row // steps, row % steps
    for _ in range(split * share_rows, tl.minimum((split + 1) * share_rows, batch * steps), M):
        inside = sample < batch
        x_step = step
        if LAST:
            last = whole_steps(sample, step, inside, table, ranges, e, batch, SIDE=QUERIES, LAST=LAST, RANGED=RANGED)
            x_step = tl.where(part == IN_PROJ, last, step)
        y_at = y_ptr + tl.multiple_of(sample * y_b + step * y_t, ALIGNED)
        x_at = x_ptr + tl.multiple_of(sample * x_b + x_step * x_t, ALIGNED)
        y_at = tl.multiple_of(y_at, ALIGNED * y_ptr.dtype.element_ty.primitive_bitwidth // 8)
        x_at = tl.multiple_of(x_at, ALIGNED * x_ptr.dtype.element_ty.primitive_bitwidth // 8)
        y = tl.load(y_at[:, None] + col[None, :], inside[:, None] & real[None, :], 0.0)
        x = tl.load(x_at[:, None] + channel[None, :], inside[:, None] & there[None, :], 0.0)
        total += product(tl.trans(y), x, PRECISION=PRECISION)
        bias += product(tl.trans(y), ones, PRECISION="ieee")  # a sum, which TF32 would round
        # The next M rows, without a division.
        step += M % steps
        sample += M // steps + (step >= steps).to(tl.int32)
        step -= tl.where(step >= steps, steps, 0)
    share = split * encoders + e
    place = share.to(tl.int64) * (WEIGHT_ROWS * DIM) + first + col
    mask = (col < weight_rows)[:, None] & (channel < DIM)[None, :]
    tl.store(shares_ptr + place[:, None] * DIM + channel[None, :], total, mask)
    one = tl.arange(0, ONES)[None, :]
    bias_at = bias_shares_ptr + (share * (BIASES * DIM) + first + col)[:, None] + one
    tl.store(bias_at, bias, (col < biases)[:, None] & (one == 0))


@lru_cache(maxsize=64)
def rows_of_a_share(rows: tuple[int, ...], jobs: int, block: int) -> int:
    """The fewest rows of a share with which all programs are one wave that have rows of queries.

    Long encoders have more shares.

    Args:
        rows: of each encoder.
        jobs: programs of an encoder's share.
        block: rows at a time; a share has a multiple of it.
    """
    most = max(WAVE // jobs, len(rows))
    share = block * max(LEAST_BLOCKS, num_blocks(num_blocks(sum(rows), most), block))
    while sum(num_blocks(count, share) for count in rows) > most:
        share += block
    return share


def weight_gradients(
    call: LayerCall, weights: LayerWeights, source: Tensor | None, grads: ActivationGradients
) -> LayerWeights:
    """Gradients of a layer's weights; the source is that of `Activations`."""
    x = grads.normed
    encoders, batch, steps, dim = x.shape
    if source is None:
        operand = x
    else:
        (operand,) = slots(source, source.shape[2], 1, dim, call.dtype)
        operand.copy_(source)
    sizes = call.sizes("weight_shares", dim)
    jobs = 5 * num_blocks(dim, sizes["CHUNK"]) + 2 * num_blocks(4 * dim, sizes["CHUNK"])
    share_rows = rows_of_a_share(tuple(batch * length for length in call.queries), jobs, sizes["M"])
    splits = num_blocks(batch * max(steps, operand.shape[2]), share_rows)
    shares = torch.empty(splits, encoders, WEIGHT_ROWS.value * dim, dim, device=x.device)
    bias_shares = torch.empty(splits, encoders, BIASES.value * dim, device=x.device)
    launch(
        weight_shares,
        (jobs, encoders, splits),
        q_ptr=grads.query,
        k_ptr=grads.key,
        x_ptr=x,
        source_ptr=operand,
        operands_ptr=grads.operands,
        shares_ptr=shares,
        bias_shares_ptr=bias_shares,
        table=call.table,
        ranges=call.attention.ranges,
        **named_strides("q", grads.query),
        **named_strides("k", grads.key),
        **named_strides("x", x),
        **named_strides("s", operand),
        **named_strides("o", grads.operands),
        batch=batch,
        share_rows=share_rows,
        encoders=encoders,
        LAST=call.last,
        RANGED=call.attention.ranged,
        ALIGNED=SLOT_CHANNELS,
        **operand_places(dim),
        **sizes,
    )
    return launch_add_up_weights(weights, shares, bias_shares)
