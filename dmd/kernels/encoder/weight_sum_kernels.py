"""A Triton kernel of an encoder layer, backward: adds up the shares of the gradients of its weights.

`shares` [splits, E, 12d, d] holds, row after row, those of the input projection (3d rows, with respect to the weight
that the layer norm's gain is folded into), of the output projection (d), of the MLP's first layer (4d, folded as well)
and of its second, transposed (4d). `bias_shares` [splits, E, 9d] holds those of the biases in the same order; the
second layer has d of them. `dmd.kernels.encoder.weight_gradient_kernels` fills both.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import num_blocks
from dmd.kernels.common.launching import launch
from dmd.kernels.encoder.plan import LayerWeights

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

IN_PROJ_JOB = tl.constexpr(0)
"""Number, along the grid's x, of the programs of `add_up_weights` that add up the input projection."""
OUT_PROJ_JOB = tl.constexpr(1)
"""Of those that add up the output projection."""
FC1_JOB = tl.constexpr(2)
"""Of those that add up the MLP's first layer."""
FC2_JOB = tl.constexpr(3)
"""Of those that add up the MLP's second layer."""
JOBS = FC2_JOB.value + 1
ADD_ROWS = 64
"""Rows of weights that a program of `add_up_weights` adds up at a time."""
ADD_COLS = 32
"""Columns of weights of a program of `add_up_weights`."""


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
    ADD_ROWS: tl.constexpr,  # rows at a time
    ADD_COLS: tl.constexpr,  # columns of the program
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
    N: tl.constexpr,  # biases at a time
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
    else:  # FC2_JOB
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


def launch_add_up_weights(weights: LayerWeights, shares: Tensor, bias_shares: Tensor) -> LayerWeights:
    """Gradients of a layer's weights from their shares."""
    splits, encoders, _, dim = shares.shape
    own = LayerWeights(*(torch.empty_like(weight) for weight in weights))
    launch(
        add_up_weights,
        (JOBS, encoders, num_blocks(dim, ADD_COLS)),
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
