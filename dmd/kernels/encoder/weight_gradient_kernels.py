"""A Triton kernel of an encoder layer, backward: gradients of its weights, as products of stored operands.

Each gradient of a weight is Y^T X, a sum over the rows: Y is the gradient of a linear layer's output, X its input. The
other kernels store both in the type of products. The gradient of a bias is the sum of Y. Each has some programs that
take a share of an encoder's rows each (no atomics), and fills its part of `shares` and `bias_shares`;
`dmd.kernels.encoder.weight_sum_kernels` adds them up.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import SLOT_CHANNELS, num_blocks
from dmd.kernels.common.launching import launch
from dmd.kernels.common.rows import row_channels
from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import COLUMNS, KEYS, QUERIES, whole_steps
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import LayerCall, WeightOperands, operand_places
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
    q_ptr,  # [E, B, Tq, S], gradient of the queries; this and all operands are rows, of the type of products
    k_ptr,  # [E, B, Tk, S], gradient of the keys; that of the values is SLOT channels further
    x_ptr,  # [E, B, T, S], normalised input of the layer
    source_ptr,  # [E, B, Tk, S], normalised, what keys and values come from; may be x
    mixed_ptr,  # [E, B, Tq, S], output of the attention
    operands_ptr,  # [E, B, Tq, OPERANDS], see `operand_places`
    shares_ptr,  # [splits, E, 12d, d], float32, written
    bias_shares_ptr,  # [splits, E, 9d], float32, written
    table,  # [E, 5], int32, see `dmd.kernels.common.triton_rows`
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    batch,  # B
    rows,  # Tq
    steps,  # T
    key_steps,  # Tk
    share_rows,  # rows of a share, a multiple of M
    encoders,  # E
    LAST: tl.constexpr,  # queries are of each sample's last step alone, Tq = 1
    RANGED: tl.constexpr,  # whether there are ranges: the last step is then the last unpadded key
    GRAD_HIDDEN: tl.constexpr,  # place in a row of operands: gradients of the hidden units before the ReLU, 4d
    HIDDEN: tl.constexpr,  # hidden units, 4d
    NORMED: tl.constexpr,  # the MLP's normalised input, d
    BRANCH: tl.constexpr,  # gradient of the MLP's output, d
    PROJECTED: tl.constexpr,  # gradient of the output projection's result, d
    WIDE_SLOT: tl.constexpr,  # channels of a slot of 4d
    OPERANDS: tl.constexpr,  # channels of the row
    Q_ROW: tl.constexpr,  # channels of a row that the gradient of the queries is a slot of
    K_ROW: tl.constexpr,  # of that of the keys
    ALIGNED: tl.constexpr,  # channels: all these are multiples of so many
    DIM: tl.constexpr,  # d
    SLOT: tl.constexpr,  # S
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
    far = e.to(tl.int64) * batch
    # Steps of an encoder; rows of both operands of a sample in memory, and channels from one to the next.
    length = 1
    if not LAST:
        length = tl.load(table + COLUMNS * e + QUERIES)
    part = job // narrow
    block = job % narrow
    # Rows of a weight and biases that Y has, and the first of both in the shares.
    weight_rows = DIM
    biases = DIM
    first = part * DIM
    y_steps, x_steps = rows, rows
    x_row = SLOT
    if part == IN_PROJ:
        y_ptr = q_ptr + far * (rows * Q_ROW)
        x_ptr += far * (steps * SLOT)
        x_steps = steps
        y_row = Q_ROW
    elif part < OUT_PROJ:
        length = tl.load(table + COLUMNS * e + KEYS)
        y_ptr = k_ptr + far * (key_steps * K_ROW) + (part - IN_PROJ_KEYS) * SLOT
        x_ptr = source_ptr + far * (key_steps * SLOT)
        y_steps, x_steps = key_steps, key_steps
        y_row = K_ROW
    else:
        y_ptr = operands_ptr + far * (rows * OPERANDS)
        x_ptr = y_ptr
        y_row = OPERANDS
        x_row = OPERANDS
        if part == OUT_PROJ:
            y_ptr += PROJECTED
            x_ptr = mixed_ptr + far * (rows * SLOT)
            x_row = SLOT
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
    sample, step = row // length, row % length
    for _ in range(split * share_rows, tl.minimum((split + 1) * share_rows, batch * length), M):
        inside = sample < batch
        x_step = step
        if LAST:
            last = whole_steps(sample, step, inside, table, ranges, e, batch, SIDE=QUERIES, LAST=LAST, RANGED=RANGED)
            x_step = tl.where(part == IN_PROJ, last, step)
        y_at = y_ptr + tl.multiple_of((sample * y_steps + step) * y_row, ALIGNED)
        x_at = x_ptr + tl.multiple_of((sample * x_steps + x_step) * x_row, ALIGNED)
        y_at = tl.multiple_of(y_at, ALIGNED * y_ptr.dtype.element_ty.primitive_bitwidth // 8)
        x_at = tl.multiple_of(x_at, ALIGNED * x_ptr.dtype.element_ty.primitive_bitwidth // 8)
        y = tl.load(y_at[:, None] + col[None, :], inside[:, None] & real[None, :], 0.0)
        x = tl.load(x_at[:, None] + channel[None, :], inside[:, None] & there[None, :], 0.0)
        total += product(tl.trans(y), x, PRECISION=PRECISION)
        bias += product(tl.trans(y), ones, PRECISION="ieee")  # a sum, which TF32 would round
        # The next M rows, without a division.
        step += M % length
        sample += M // length + (step >= length).to(tl.int32)
        step -= tl.where(step >= length, length, 0)
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
    call: LayerCall, weights: LayerWeights, source: Tensor | None, operands: WeightOperands
) -> LayerWeights:
    """Gradients of a layer's weights; the source is that of `Activations`."""
    x, dim = operands.normed, call.dim
    encoders, batch, steps, _ = x.shape
    source = x if source is None else source.to(call.dtype)
    sizes = call.sizes("weight_shares")
    jobs = 5 * num_blocks(dim, sizes["CHUNK"]) + 2 * num_blocks(4 * dim, sizes["CHUNK"])
    share_rows = rows_of_a_share(tuple(batch * length for length in call.queries), jobs, sizes["M"])
    splits = num_blocks(batch * max(steps, source.shape[2]), share_rows)
    shares = torch.empty(splits, encoders, WEIGHT_ROWS.value * dim, dim, device=x.device)
    bias_shares = torch.empty(splits, encoders, BIASES.value * dim, device=x.device)
    launch(
        weight_shares,
        (jobs, encoders, splits),
        q_ptr=operands.grad_query,
        k_ptr=operands.grad_key,
        x_ptr=x,
        source_ptr=source,
        mixed_ptr=operands.mixed,
        operands_ptr=operands.others,
        shares_ptr=shares,
        bias_shares_ptr=bias_shares,
        table=call.table,
        ranges=call.attention.ranges,
        batch=batch,
        rows=operands.mixed.shape[2],
        steps=steps,
        key_steps=source.shape[2],
        share_rows=share_rows,
        encoders=encoders,
        LAST=call.last,
        RANGED=call.attention.ranged,
        Q_ROW=row_channels(operands.grad_query),
        K_ROW=row_channels(operands.grad_key),
        ALIGNED=SLOT_CHANNELS,
        **operand_places(dim),
        **sizes,
    )
    return launch_add_up_weights(weights, shares, bias_shares)
