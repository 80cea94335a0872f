"""The objective of DMD: named terms per ghost batch and their weighted sum (paper, eqs. 6 and 11)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dmd.kernels.cpu import CPU
from dmd.kernels.interface import Backend
from dmd.losses.decoupling import mean_squared, orthogonality
from dmd.losses.distillation import (
    logit_distillation,
    make_prior,
    prior_regulariser,
    representation_distillation,
)
from dmd.losses.fused import NAMES, FusedObjective
from dmd.losses.ghost import sample_mean
from dmd.losses.margin import margin_loss
from dmd.losses.task import task_loss
from dmd.model.config import MODALITIES, ModelConfig
from dmd.model.dmd import HEADS, DMDOutput
from dmd.model.graph import GDUnit

MOST_SAMPLES = 64
"""Of a ghost batch that the Triton losses take: a program holds all of it, and ptxas works for minutes on more."""
TASK_TERMS = tuple(f"task_{head}" for head in HEADS)


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights and switches of the objective. Defaults are what the published code computes on PyTorch 1.9."""

    decoupling_weight: float = 0.1
    """Weight of reconstruction + cycle + gamma * (margin + orthogonality): lambda_1 of the paper."""
    gamma: float = 0.1
    """Weight of margin and orthogonality losses inside the decoupling loss."""
    distillation_weight: float = 0.05
    """Weight of each graph distillation loss: lambda_2 of the paper."""
    orthogonality: Literal["batch", "feature"] = "batch"
    """Axis of the orthogonality cosine: `batch` (published code) or `feature` (the paper's eq. 5)."""
    prior: Literal["published", "uniform", "none"] = "published"
    """Target of the edges and addend of the distillation weights (published code). `none`, as in the paper: the
    weights are the edges alone and nothing regularises them."""
    homo_distillation: bool = True
    """HomoGD (paper, Table 3); without it its terms are logged but weigh nothing."""
    hetero_distillation: bool = True
    """HeteroGD (paper, Table 3); without it its terms are logged but weigh nothing."""
    margin: Literal["label_distance", "constant"] = "label_distance"
    """Margin of the margin loss: 0.15 times the distance of the labels (published code), or `margin_constant` (eq. 4,
    which does not tell its value; 0.1 is a default that the published function declares and never uses)."""
    margin_constant: float = 0.1
    """The margin for `margin: constant`."""
    margin_smoothing: float = 0.0
    """Label smoothing of the margin loss: two samples are positives of each other to the degree 1 - distance of their
    labels / this value, and negatives for the rest; 0: positives have equal labels, all others are negatives, as
    published. Above 0 the margin loss runs in plain torch."""

    def __post_init__(self) -> None:
        for name in ("decoupling_weight", "gamma", "distillation_weight", "margin_constant", "margin_smoothing"):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; it must be at least 0")


class Objective(nn.Module):
    """The two GD-Units and every loss term of DMD.

    Args:
        config: weights and switches.
        model: the network's hyperparameters, for the sizes of the GD-Units.
        backend: whose kernels of losses compute what they know of the config, of up to MOST_SAMPLES samples.
    """

    def __init__(self, config: ObjectiveConfig, model: ModelConfig, *, backend: Backend = CPU) -> None:
        super().__init__()
        self.config = config
        self.decoupling = model.decoupling
        self.homo = GDUnit(model.dim, model.gd_size_homo, model.outputs)
        self.hetero = GDUnit(2 * model.dim, model.gd_size_hetero, model.outputs)
        self.register_buffer("prior_homo", make_prior(config.prior, "homo"), persistent=False)
        self.register_buffer("prior_hetero", make_prior(config.prior, "hetero"), persistent=False)
        self._known = config.orthogonality == "batch" and model.task == "regression"
        self.use(backend)

    def use(self, backend: Backend) -> None:
        """Let a backend's kernels compute the losses from here on, and PyTorch what it has none for."""
        self.kernels = backend.losses
        if self.kernels is not None and self._known:
            priors = torch.stack([self.get_buffer("prior_homo"), self.get_buffer("prior_hetero")])
            names = dict(zip(NAMES, torch.eye(len(NAMES), device=priors.device), strict=True))
            self.register_buffer("priors", priors, persistent=False)
            self.register_buffer("coefficients", self.weighted_sum(names), persistent=False)

    def forward(self, output: DMDOutput, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Every term of every ghost batch.

        Args:
            output: of B = G * S samples, ghost batch after ghost batch.
            labels: [G, S], sentiments or class numbers.
            mask: [G, S], 1 for a sample, 0 for padding.

        Returns:
            {name: [G]}: each term before weighting, `total`, and {"edges_homo", "edges_hetero": [G, 6]} (means over
            the samples of a ghost batch, for the log).
        """
        kernels = self.kernels if labels.shape[1] <= MOST_SAMPLES else None
        constant = self.config.margin_constant if self.config.margin == "constant" else None
        if kernels is not None and self._known:
            fused = FusedObjective(
                kernels=kernels,
                units=(self.homo, self.hetero),
                priors=self.get_buffer("priors"),
                regularised=self.config.prior != "none",
                coefficients=self.get_buffer("coefficients"),
                margin_constant=constant,
                margin_smoothing=self.config.margin_smoothing,
            )
            return fused.terms(output, labels, mask)
        output = _in_ghost_batches(output, labels.shape)
        mask = mask.to(labels.dtype)
        terms = {f"task_{head}": sample_mean(task_loss(output.predictions[head], labels), mask) for head in HEADS}
        parts = output.decoupled
        again = parts.reconstructed
        terms["reconstruction"] = _total(mean_squared(parts.origin[m], again[m], mask) for m in MODALITIES)
        terms["cycle"] = _total(mean_squared(parts.private[m], parts.private_again[m], mask) for m in MODALITIES)
        terms["orthogonality"] = _total(
            orthogonality(parts.private[m], parts.shared[m], mask, along=self.config.orthogonality) for m in MODALITIES
        )
        features = torch.stack([output.margin_features[m] for m in MODALITIES], 1)  # [G, 3, S, d]
        terms["margin"] = margin_loss(
            features,
            labels,
            mask,
            constant=constant,
            smoothing=self.config.margin_smoothing,
            kernels=kernels,
        )
        terms.update(self._distillation("homo", output.homo_repr, output, mask))
        terms.update(self._distillation("hetero", output.hetero_repr, output, mask))
        terms["total"] = self.weighted_sum(terms)
        return terms

    def weighted_sum(self, terms: dict[str, Tensor]) -> Tensor:
        """The objective from its terms; any shape, equal for all terms."""
        config = self.config
        task = _total(terms[name] for name in TASK_TERMS)
        homo = terms["homo_logit"] + terms["homo_regulariser"]
        hetero = terms["hetero_logit"] + terms["hetero_representation"] + terms["hetero_regulariser"]
        relation = terms["margin"] + terms["orthogonality"]
        decoupling = terms["reconstruction"] + terms["cycle"] + config.gamma * relation
        distillation = homo * config.homo_distillation + hetero * config.hetero_distillation
        weight = config.decoupling_weight * self.decoupling
        return task + weight * decoupling + config.distillation_weight * distillation

    def _distillation(self, space: str, reprs: dict[str, Tensor], output: DMDOutput, mask: Tensor) -> dict[str, Tensor]:
        logits = {m: output.predictions[f"{m}_{space}"] for m in MODALITIES}
        prior = self.get_buffer(f"prior_{space}")
        edges = self.get_submodule(space)(logits, reprs)  # [G, S, 6]
        terms = {
            f"edges_{space}": sample_mean(edges.detach(), mask),
            f"{space}_logit": logit_distillation(edges, prior, logits, mask),
            f"{space}_regulariser": prior_regulariser(edges, prior, mask) * (self.config.prior != "none"),
        }
        if space == "hetero":  # the published code computes this term for HomoGD too and leaves it out of its sum
            terms["hetero_representation"] = representation_distillation(edges, prior, reprs, mask)
        return terms


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


def _in_ghost_batches(output: DMDOutput, shape: torch.Size) -> DMDOutput:
    """View every tensor [B, ...] as [G, S, ...], in float32 at least: the losses are not computed in bfloat16."""

    def view(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: tensor.to(torch.promote_types(tensor.dtype, torch.float32)).unflatten(0, shape)
            for name, tensor in tensors.items()
        }

    return DMDOutput(
        predictions=view(output.predictions),
        decoupled=type(output.decoupled)(*map(view, output.decoupled)),
        margin_features=view(output.margin_features),
        homo_repr=view(output.homo_repr),
        hetero_repr=view(output.hetero_repr),
    )
