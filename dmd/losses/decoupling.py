"""Reconstruction, cycle and orthogonality losses (paper, eqs. 2, 3, 5), per ghost batch.

They need of the features [G, S, T, d] no more than means over time steps and channels, or sums over samples: `compare`
makes these. Features are large and stay on the rank that has made them; what is left of them is gathered or added up
where ranks share a ghost batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.kernels.losses.constants import COSINE_EPSILON
from dmd.losses.ghost import sample_mean
from dmd.model.config import MODALITIES
from dmd.model.decouple import Decoupled


def cosine(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """a.b / sqrt((a.a + eps)(b.b + eps)) along `dim` (PyTorch 1.9's CosineEmbeddingLoss)."""
    return _cosine(_products(first, second, dim))


def _products(first: Tensor, second: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """a.b, a.a and b.b along `dim`."""
    return (first * second).sum(dim), (first * first).sum(dim), (second * second).sum(dim)


def _cosine(products: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    dot, first, second = products
    return dot / ((first + COSINE_EPSILON) * (second + COSINE_EPSILON)).sqrt()


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What the losses read of decoupled features."""

    reconstruction: Tensor
    """[G, S, modalities], mean squared error of what the decoders make of the features."""
    cycle: Tensor
    """[G, S, modalities], the same of the heterogeneous features of that."""
    cosines: Tensor | None
    """[G, S, modalities], clamped cosine over the channels of heterogeneous and homogeneous features, mean over time;
    None where the cosine is that over the samples."""
    products: list[tuple[Tensor, Tensor, Tensor]]
    """For each modality the products, over the samples, of heterogeneous and homogeneous features that their cosine is
    made of, each [G, T, d]; empty where the cosine is that over the channels."""


def compare(features: Decoupled, mask: Tensor, *, along: str) -> Compared:
    """Compare decoupled features [G, S, T, d]; mask [G, S].

    Args:
        along: axis of the orthogonality's cosine, `objective.orthogonality` (see `orthogonality`).
    """
    by_samples = along == "batch"
    pairs = [(features.private[m], features.shared[m]) for m in MODALITIES]
    valid = mask[:, :, None, None]
    return Compared(
        reconstruction=_squared_errors(features.origin, features.reconstructed),
        cycle=_squared_errors(features.private, features.private_again),
        cosines=None
        if by_samples
        else torch.stack([cosine(*pair, -1).clamp(min=0).mean(-1) for pair in pairs], dim=-1),
        products=[_products(first * valid, second * valid, 1) for first, second in pairs] if by_samples else [],
    )


def _squared_errors(first: dict[str, Tensor], second: dict[str, Tensor]) -> Tensor:
    """Mean over time steps and channels: {m: [G, S, T, d]} twice -> [G, S, modalities]."""
    return torch.stack([(first[m] - second[m]).square().mean((-2, -1)) for m in MODALITIES], dim=-1)


def mean_squared(errors: Tensor, mask: Tensor) -> Tensor:
    """Sum over the modalities of the mean over samples: [G, S, modalities], mask [G, S] -> [G].

    Eqs. 2 and 3 as the published code computes them, which the paper prints as squared Frobenius norms.
    """
    return sample_mean(errors, mask).sum(-1)


def orthogonality(compared: Compared, mask: Tensor) -> Tensor:
    """Clamped cosine between heterogeneous and homogeneous features, summed over the modalities; mask [G, S] -> [G].

    `objective.orthogonality` is the axis. batch: cosine of the vectors over the samples of a ghost batch, for each time
    step and channel, which is what the published code computes on PyTorch 1.9
    (docs/published-code.md#orthogonality). feature: cosine over the channels, for each sample and time step, as eq. 5
    reads.
    """
    if compared.cosines is not None:
        return sample_mean(compared.cosines, mask).sum(-1)
    means = [_cosine(products).clamp(min=0).mean((-2, -1)) for products in compared.products]
    return torch.stack(means).sum(0)
