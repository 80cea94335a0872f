"""The margin loss of `dmd.losses.margin` in two Triton launches: one forward, one backward, a program per ghost batch.

Forward normalises the rows, forms their Gram matrix and the triplet hinges, and leaves the gradient with respect to the
Gram matrix (a few kilobytes per ghost batch); backward carries that to the features. TRITON_INTERPRET=1 runs both on a
CPU, for tests.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.common.block_sizes import MIN_SIDE, padded
from dmd.kernels.common.launching import launch
from dmd.kernels.losses.constants import MARGIN_EPSILON, MARGIN_PER_LABEL

WARPS = 8


@triton.jit
def _normed_rows(
    x_ptr,  # [G, rows, dim], float32
    row,  # [N], numbers of rows
    ghost,  # number of the ghost batch
    rows,  # of a ghost batch
    dim,  # channels
    epsilon,  # added to squared norms
    DIM: tl.constexpr,  # channels, padded to a power of two
):
    """Normalised rows [N, DIM] of a ghost batch, the inverse of their norms [N], and which elements are no padding."""
    channel = tl.arange(0, DIM)
    inside = (row[:, None] < rows) & (channel[None, :] < dim)
    x = tl.load(x_ptr + ghost * rows * dim + row[:, None] * dim + channel[None, :], inside, 0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 1) + epsilon)
    return x * inverse[:, None], inverse, inside


@triton.jit
def _forward(
    x_ptr,  # [G, rows, dim], float32
    label_ptr,  # [G, rows], float32
    mask_ptr,  # [G, rows], 1 for a row of a sample, 0 for padding
    cos_ptr,  # [G, ROWS, ROWS], cosines of the rows, written and read again
    grad_ptr,  # [G, ROWS, ROWS], gradient of the loss with respect to the cosines, written
    loss_ptr,  # [G], written
    rows,  # of a ghost batch
    dim,  # channels
    epsilon,  # added to squared norms
    reach,  # margin for each unit of the distance of labels
    ROWS: tl.constexpr,  # rows, padded to a power of two
    DIM: tl.constexpr,  # channels, padded to a power of two
):
    """The loss of a ghost batch, and its gradient with respect to the cosines of its rows."""
    ghost = tl.program_id(0)
    row = tl.arange(0, ROWS)
    normed, _, _ = _normed_rows(x_ptr, row, ghost, rows, dim, epsilon, DIM=DIM)
    square = ghost * ROWS * ROWS + row[:, None] * ROWS + row[None, :]
    cos = tl.dot(normed, tl.trans(normed), input_precision="ieee")
    tl.store(cos_ptr + square, cos)
    tl.debug_barrier()
    label = tl.load(label_ptr + ghost * rows + row, row < rows, 0.0)
    valid = tl.load(mask_ptr + ghost * rows + row, row < rows, 0.0)
    loss = 0.0
    anchors = 0.0
    for i in range(0, rows):
        cos_i = tl.load(cos_ptr + (ghost * ROWS + i) * ROWS + row)
        label_i = tl.load(label_ptr + ghost * rows + i)
        valid_i = tl.load(mask_ptr + ghost * rows + i)
        same = tl.where(label == label_i, 1.0, 0.0)
        positive = same * valid * valid_i * tl.where(row == i, 0.0, 1.0)
        negative = (1.0 - same) * valid * valid_i
        pairs = tl.sum(positive, 0) * tl.sum(negative, 0)
        hinge = (reach * tl.abs(label_i - label) + cos_i)[None, :] - cos_i[:, None]  # [positives, negatives]
        weight = positive[:, None] * negative[None, :] / tl.maximum(pairs, 1.0)
        active = tl.where(hinge > 0, weight, 0.0)
        loss += tl.sum(tl.sum(active * hinge, 1), 0)
        anchors += tl.where(pairs > 0, 1.0, 0.0)
        tl.store(grad_ptr + (ghost * ROWS + i) * ROWS + row, tl.sum(active, 0) - tl.sum(active, 1))
    tl.debug_barrier()
    anchors = tl.maximum(anchors, 1.0)
    inside = (row[:, None] < rows) & (row[None, :] < rows)
    tl.store(grad_ptr + square, tl.load(grad_ptr + square, inside, 0.0) / anchors)
    tl.store(loss_ptr + ghost, loss / anchors)


@triton.jit
def _backward(
    x_ptr,  # [G, rows, dim], float32
    grad_ptr,  # [G, ROWS, ROWS], gradient of the loss with respect to the cosines
    upstream_ptr,  # [G], gradient of the loss
    out_ptr,  # [G, rows, dim], gradient of x, written
    rows,  # of a ghost batch
    dim,  # channels
    epsilon,  # added to squared norms
    ROWS: tl.constexpr,  # rows, padded to a power of two
    DIM: tl.constexpr,  # channels, padded to a power of two
    PART: tl.constexpr,  # rows at a time
):
    """The gradient of the rows of a ghost batch."""
    ghost = tl.program_id(0)
    row = tl.arange(0, ROWS)
    channel = tl.arange(0, DIM)
    square = grad_ptr + ghost * ROWS * ROWS
    toward = tl.zeros([ROWS, DIM], tl.float32)
    for begin in range(0, ROWS, PART):  # a product without matrix units holds the whole sides in registers
        other = begin + tl.arange(0, PART)
        grad = tl.load(square + row[:, None] * ROWS + other[None, :])
        grad += tl.load(square + other[None, :] * ROWS + row[:, None])
        normed, _, _ = _normed_rows(x_ptr, other, ghost, rows, dim, epsilon, DIM=DIM)
        toward += tl.dot(grad, normed, input_precision="ieee")
    toward *= tl.load(upstream_ptr + ghost)
    normed, inverse, inside = _normed_rows(x_ptr, row, ghost, rows, dim, epsilon, DIM=DIM)
    along = tl.sum(toward * normed, 1)
    out = (toward - normed * along[:, None]) * inverse[:, None]
    tl.store(out_ptr + ghost * rows * dim + row[:, None] * dim + channel[None, :], out, inside)


class FusedMargin(torch.autograd.Function):
    """Loss [G] of features [G, R, d] float32, labels [G, R] and mask [G, R]."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        features = features.contiguous()
        ghosts, rows, dim = features.shape
        sizes = {"ROWS": padded(rows), "DIM": padded(dim)}
        cos, grad = (torch.empty(ghosts, sizes["ROWS"], sizes["ROWS"], device=features.device) for _ in range(2))
        loss = torch.empty(ghosts, device=features.device)
        launch(
            _forward,
            (ghosts,),
            x_ptr=features,
            label_ptr=labels.contiguous(),
            mask_ptr=mask.contiguous(),
            cos_ptr=cos,
            grad_ptr=grad,
            loss_ptr=loss,
            rows=rows,
            dim=dim,
            epsilon=MARGIN_EPSILON,
            reach=MARGIN_PER_LABEL,
            **sizes,
            num_warps=WARPS,
        )
        ctx.save_for_backward(features, grad)
        ctx.sizes = sizes
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        features, grad = ctx.saved_tensors
        ghosts, rows, dim = features.shape
        out = torch.empty_like(features)
        launch(
            _backward,
            (ghosts,),
            x_ptr=features,
            grad_ptr=grad,
            upstream_ptr=gradients[0].contiguous(),
            out_ptr=out,
            rows=rows,
            dim=dim,
            epsilon=MARGIN_EPSILON,
            **ctx.sizes,
            PART=MIN_SIDE,
            num_warps=WARPS,
        )
        return out, None, None
