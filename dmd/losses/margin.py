"""The margin loss (paper, eq. 4) as the published code computes it, vectorised over ghost batches."""

import torch
from torch import Tensor

from dmd.kernels.interface import LossKernels
from dmd.kernels.losses.constants import MARGIN_EPSILON, MARGIN_PER_LABEL

DISTANCE_OF_SETS = 3.0
"""Difference of the labels of two samples that share no emotion, in units of a sentiment."""


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

    Labels may be sets of emotions. Their difference |y_i - y_k| is then 3 (1 - |A and B| / |A or B|), Jaccard's
    distance (two empty sets are equal): positives have the same emotions, and samples that share none are as far apart
    as a neutral sentiment and the strongest one, so that the margin stays in the range that it was published for.

    Args:
        features: [G, 3, S, d].
        labels: [G, S], or [G, S, L] for emotions as 0 and 1.
        mask: [G, S].
        constant: the margin, in the place of 0.15 |y_i - y_k| (eq. 4).
        smoothing: difference of labels at which two samples have nothing in common; 0: any, as published.
        kernels: what computes the published loss, the only one that kernels know; None: PyTorch.

    Returns:
        [G].
    """
    rows = features.flatten(1, 2)  # [G, R, d], R = 3S
    is_set = labels.dim() > mask.dim()
    label = labels.repeat(1, 3, 1) if is_set else labels.repeat(1, 3)
    valid = mask.repeat(1, 3)
    if kernels is not None and constant is None and smoothing == 0 and not is_set:
        return kernels.margin(rows, label, valid)
    rows = rows / (rows.square().sum(-1, keepdim=True) + MARGIN_EPSILON).sqrt()
    similarity = rows @ rows.transpose(1, 2)  # [G, R, R]
    both = valid[:, :, None] * valid[:, None]
    distance = distance_of_sets(label) if is_set else (label[:, :, None] - label[:, None]).abs()
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


def distance_of_sets(labels: Tensor) -> Tensor:
    """DISTANCE_OF_SETS times Jaccard's distance of all pairs of sets [G, R, L], as 0 and 1 -> [G, R, R]."""
    sizes = labels.sum(-1)
    common = labels @ labels.transpose(1, 2)
    union = sizes[:, :, None] + sizes[:, None] - common
    return DISTANCE_OF_SETS * (union - common) / union.clamp(min=1)
