"""Reconstruction, cycle and orthogonality losses (paper, eqs. 2, 3, 5), per ghost batch."""

from torch import Tensor

from dmd.kernels.losses.constants import COSINE_EPSILON
from dmd.losses.ghost import sample_mean


def cosine(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """a.b / sqrt((a.a + eps)(b.b + eps)) along `dim` (PyTorch 1.9's CosineEmbeddingLoss)."""
    dot = (first * second).sum(dim)
    norms = ((first * first).sum(dim) + COSINE_EPSILON) * ((second * second).sum(dim) + COSINE_EPSILON)
    return dot / norms.sqrt()


def mean_squared(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over samples, time steps and channels: [G, S, T, d] twice, mask [G, S] -> [G].

    Eqs. 2 and 3 as the published code computes them, which the paper prints as squared Frobenius norms.
    """
    return sample_mean((first - second).square().mean((-2, -1)), mask)


def orthogonality(private: Tensor, shared: Tensor, mask: Tensor, *, along: str) -> Tensor:
    """Clamped cosine between private and shared features [G, S, T, d], mask [G, S] -> [G].

    Args:
        along: "batch": cosine of the vectors over the samples of a ghost batch, for each time step and channel, which
            is what the published code computes on PyTorch 1.9 (docs/published-code.md#orthogonality); "feature": cosine
            over the channels, for each sample and time step, as eq. 5 reads.
    """
    if along == "batch":
        valid = mask[:, :, None, None]
        return cosine(private * valid, shared * valid, 1).clamp(min=0).mean((-2, -1))
    assert along == "feature", along
    return sample_mean(cosine(private, shared, -1).clamp(min=0).mean(-1), mask)
