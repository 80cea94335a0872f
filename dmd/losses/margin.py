"""The margin loss (paper, eq. 4) as the published code computes it, vectorised over ghost batches."""

import torch
from torch import Tensor

from dmd.kernels.interface import LossKernels
from dmd.kernels.losses.constants import MARGIN_EPSILON, MARGIN_PER_LABEL


def margin_loss(
    features: Tensor,
    labels: Tensor,
    mask: Tensor,
    *,
    constant: float | None = None,
    smoothing: float = 0.0,
    kernels: LossKernels | None = None,
) -> Tensor:
    """Triplet hinge over the 3S rows of each ghost batch.

    For an anchor i, positives j are the other rows with the equal label and negatives k the rows with another label,
    whatever their modality or sample: mean over pairs of max(0, 0.15 |y_i - y_k| - cos_ij + cos_ik), then the mean
    over the anchors that have both, 0 where none has. (Eq. 4 restricts the modalities of j and k.)

    With `smoothing` h > 0 a row is to the degree max(0, 1 - |y_i - y_j| / h) a positive of i and for the rest a
    negative, so that labels nearer than h are neither hard positives nor hard negatives. The mean over pairs of
    distinct rows is weighted by the product of the two degrees; pairs of an anchor that together weigh less than one
    count as one. As h falls below the smallest difference of two labels this becomes the published loss.

    Args:
        features: [G, 3, S, d].
        labels: [G, S].
        mask: [G, S].
        constant: the margin, in the place of 0.15 |y_i - y_k| (eq. 4).
        smoothing: difference of labels at which two samples have nothing in common; 0: any, as published.
        kernels: what computes the published loss, the only one that kernels know; None: PyTorch.

    Returns:
        [G].
    """
    rows = features.flatten(1, 2)  # [G, R, d], R = 3S
    label = labels.repeat(1, 3)
    valid = mask.repeat(1, 3)
    if kernels is not None and constant is None and smoothing == 0:
        return kernels.margin(rows, label, valid)
    rows = rows / (rows.square().sum(-1, keepdim=True) + MARGIN_EPSILON).sqrt()
    similarity = rows @ rows.transpose(1, 2)  # [G, R, R]
    both = valid[:, :, None] * valid[:, None]
    distance = (label[:, :, None] - label[:, None]).abs()
    same = (1 - distance / smoothing).clamp(min=0) if smoothing else (distance == 0).to(rows.dtype)
    other_row = 1 - torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    positive = same * both * other_row  # [G, R, R]
    negative = (1 - same) * both
    reach = (MARGIN_PER_LABEL * distance if constant is None else constant) + similarity  # [G, i, k]
    hinge = (reach[:, :, None] - similarity[:, :, :, None]).clamp(min=0)  # [G, i, j, k]
    total = torch.einsum("gijk,gij,gik->gi", hinge, positive, negative)
    pairs = positive.sum(-1) * negative.sum(-1)  # [G, R]
    if smoothing:  # a row that is both would be compared with itself
        twice = positive * negative
        total, pairs = total - (twice * (reach - similarity)).sum(-1), pairs - twice.sum(-1)
    anchors = (pairs > 0).to(rows.dtype)
    return (total / pairs.clamp(min=1)).sum(-1) / anchors.sum(-1).clamp(min=1)
