"""The weights and switches of the objectives."""

from dataclasses import dataclass
from typing import Literal


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
    which does not state its value; 0.1 is a default that the published function declares and never uses). docs/tasks.md
    has the distance of classes and of emotions."""
    margin_constant: float = 0.1
    """The margin for `margin: constant`."""
    margin_smoothing: float = 0.0
    """Label smoothing of the margin loss: two samples are positives of each other to the degree 1 - distance of their
    labels / this value, and negatives for the rest; 0: positives have equal labels, all others are negatives, as
    published. Above 0 the margin loss runs in PyTorch."""
    consistency: float = 0.0
    """Weight of R-Drop (Liang et al., NeurIPS 2021): each sample goes through the network twice, with dropouts of its
    own, and the distance of both fused predictions is added to the mean of both objectives. Squared difference of
    sentiments, symmetric KL divergence of classes, of emotions the mean of theirs. Costs a second pass, in time and
    memory, and none is captured (`train.cuda_graph`). 0: one pass, as published."""
    label_density_smoothing: float = 0.0
    """Width of the kernel of label distribution smoothing (Yang et al., ICML 2021), in units of the shards' labels,
    such as 0.5: a training sample's task losses are weighted by the inverse of the density of the train split's labels
    around its own, so that rare sentiments count as much as frequent ones. Weights have the mean 1. A density is no
    less than that of 5 samples of one label, nor than a 200th of the highest, as in the published code; a training says
    at its start what samples weigh. Of classes the density is their frequency, at any value above 0; emotions have
    none. Above 0 the objective runs in PyTorch, and no pass is captured. Of Self-MM the fused head alone is weighted:
    the labels of its other heads have another density. Validation and metrics are not weighted. 0: none, as
    published."""

    def __post_init__(self) -> None:
        for name in (
            "decoupling_weight",
            "gamma",
            "distillation_weight",
            "margin_constant",
            "margin_smoothing",
            "consistency",
            "label_density_smoothing",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"objective.{name} is {getattr(self, name)}; it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class MisaConfig:
    """Weights of MISA's losses. Defaults are the published ones for CMU-MOSI (declare-lab/MISA@ec42fad, src/config.py).
    All losses are of a ghost batch."""

    similarity_weight: float = 1.0
    """Weight of the central moment discrepancy between the modalities' shared vectors."""
    difference_weight: float = 0.3
    """Weight of the correlation of private vectors with shared ones and with each other."""
    reconstruction_weight: float = 1.0
    """Weight of the squared error of what the decoders make of private and shared vectors."""
    regression_loss: Literal["squared", "absolute"] = "squared"
    """Error of a sentiment: squared, as published, or absolute, as of the other models. Validation reports the absolute
    one either way."""

    def __post_init__(self) -> None:
        for name in ("similarity_weight", "difference_weight", "reconstruction_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"misa.{name} is {getattr(self, name)}; it must be at least 0")
