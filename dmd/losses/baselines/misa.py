"""The losses of MISA (Hazarika et al., ACM MM 2020), per ghost batch, as the published code computes them
(declare-lab/MISA@ec42fad, src/utils/functions.py and src/solver.py). d channels.

Similarity and difference compare the samples of a batch with each other, so the size of a ghost batch is a
hyperparameter of them: the published batch is one ghost batch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dmd.losses.config import MisaConfig
from dmd.losses.ghost import sample_mean
from dmd.losses.model_objective import LossTerm, task_term
from dmd.losses.terms_objective import ObjectiveInputs, TermsObjective
from dmd.model.config import MODALITIES, ModelConfig
from dmd.model.network import FUSED

MOMENTS = 5
"""Moments that the similarity compares."""
UNIT_EPSILON = 1e-6
"""Added to the norm of a row that is divided by it."""
PAIRS = (("text", "vision"), ("text", "audio"), ("audio", "vision"))
"""Pairs of modalities that are compared with each other."""


class MisaObjective(TermsObjective):
    """The task loss with the three losses below.

    Args:
        settings: their weights.
        model: the network's hyperparameters.
    """

    def __init__(self, settings: MisaConfig, model: ModelConfig) -> None:
        super().__init__(model)
        self.config = settings

    @classmethod
    def make(cls, settings: object, model: ModelConfig) -> "MisaObjective":
        """See `ModelObjective.make`."""
        assert isinstance(settings, MisaConfig)
        return cls(settings, model)

    @classmethod
    def described(cls) -> list[LossTerm]:
        """See `ModelObjective.described`."""
        return [
            task_term(FUSED),
            LossTerm(
                name="similarity",
                title="similarity",
                about="central moment discrepancy of the modalities' shared vectors",
                weight="`misa.similarity_weight`",
            ),
            LossTerm(
                name="difference",
                title="difference",
                about="correlation of private vectors with shared ones and with each other",
                weight="`misa.difference_weight`",
            ),
            LossTerm(
                name="reconstruction",
                title="reconstruction",
                about="vectors of the utterance against what the decoders make of private and shared ones",
                weight="`misa.reconstruction_weight`",
            ),
        ]

    def terms(self, inputs: ObjectiveInputs) -> dict[str, Tensor]:
        """See `TermsObjective.terms`."""
        private, shared, origin, reconstructed = (
            {m: inputs.compared[f"{group}_{m}"] for m in MODALITIES}
            for group in ("private", "shared", "origin", "reconstructed")
        )
        return {
            f"task_{FUSED}": self._task(inputs),
            "similarity": similarity(shared, inputs.mask),
            "difference": difference(private, shared, inputs.mask),
            "reconstruction": reconstruction(origin, reconstructed, inputs.mask),
        }

    @property
    def weights(self) -> Mapping[str, float]:
        """See `TermsObjective.weights`."""
        config = self.config
        return {
            "similarity": config.similarity_weight,
            "difference": config.difference_weight,
            "reconstruction": config.reconstruction_weight,
        }

    @property
    def trains_another_error(self) -> bool:
        """See `ModelObjective.trains_another_error`."""
        return self._is_squared or super().trains_another_error

    @property
    def _is_squared(self) -> bool:
        return self.kind == "regression" and self.config.regression_loss == "squared"

    def _task(self, inputs: ObjectiveInputs) -> Tensor:
        """[G]"""
        if self._is_squared:
            return inputs.task_mean((inputs.predictions[FUSED] - inputs.labels).square())
        return inputs.task()


def similarity(shared: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Mean over the pairs of modalities of the central moment discrepancy of their shared vectors.

    Args:
        shared: {m: [G, S, d]}.
        mask: [G, S], 1 for a sample, 0 for padding.

    Returns:
        [G]
    """
    moments = {m: central_moments(shared[m], mask) for m in MODALITIES}  # {m: [G, MOMENTS, d]}
    distances = [torch.linalg.vector_norm(moments[m] - moments[n], dim=-1).sum(-1) for m, n in PAIRS]
    return torch.stack(distances).mean(0)


def central_moments(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of samples [G, S, d] and their central moments of order 2 to MOMENTS, [G, MOMENTS, d]."""
    mean = sample_mean(x, mask)  # [G, d]
    centred = x - mean[:, None]
    higher = [sample_mean(centred.pow(order), mask) for order in range(2, MOMENTS + 1)]
    return torch.stack([mean, *higher], dim=1)


def difference(private: Mapping[str, Tensor], shared: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Sum of the correlations of each modality's private and shared vectors, and of the private vectors of each pair of
    modalities.

    Args:
        private: {m: [G, S, d]}.
        shared: {m: [G, S, d]}.
        mask: [G, S].

    Returns:
        [G]
    """
    private_units = {m: centred_units(private[m], mask) for m in MODALITIES}
    shared_units = {m: centred_units(shared[m], mask) for m in MODALITIES}
    pairs = [(private_units[m], shared_units[m]) for m in MODALITIES]
    pairs += [(private_units[m], private_units[n]) for m, n in PAIRS]
    return torch.stack([_correlation(*pair) for pair in pairs]).sum(0)


def centred_units(x: Tensor, mask: Tensor) -> Tensor:
    """Vectors [G, S, d] less their mean over the samples and over their norm, which has no gradient; padding is 0."""
    centred = (x - sample_mean(x, mask)[:, None]) * mask[..., None]
    return centred / (torch.linalg.vector_norm(centred, dim=-1, keepdim=True).detach() + UNIT_EPSILON)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Mean of the squared elements of first^T second, of vectors [G, S, d]: [G]."""
    return (first.transpose(1, 2) @ second).square().mean((1, 2))


def reconstruction(origin: Mapping[str, Tensor], reconstructed: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Mean over modalities, samples and channels of the squared error of what the decoders make of both vectors:
    {m: [G, S, d]} twice, mask [G, S] -> [G]."""
    errors = [(reconstructed[m] - origin[m]).square().mean(-1) for m in MODALITIES]  # [G, S] of each
    return sample_mean(torch.stack(errors, dim=-1), mask).mean(-1)
