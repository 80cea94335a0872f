"""Graph distillation losses (paper, eq. 9) of one GD-Unit, per ghost batch.

Edges are [G, S, 6] in the order of `dmd.model.graph.PAIRS`; a prior is [6]. The weight of distilling teacher into
student is edge + prior (published code; the paper has no prior). A teacher gets no gradient.
"""

import torch
from torch import Tensor

from dmd.kernels.losses.constants import REGULARISER_WEIGHT, REPRESENTATION_WEIGHT
from dmd.losses.decoupling import cosine
from dmd.losses.ghost import sample_mean
from dmd.model.config import Kind
from dmd.model.graph import PAIRS, centred

PRIOR_TEMPERATURE = 0.25
TRUSTED = {"homo": (0, 0, 1, 0, 1, 0), "hetero": (0, 0, 1, 0, 1, 1)}
"""Pairs that the published prior favours: text into vision and audio; hetero also vision into audio."""


def make_prior(kind: str, space: str) -> Tensor:
    """The prior [6] of a space ("homo" or "hetero"): "published", "uniform" (1/6 each) or "none" (zero)."""
    if kind == "published":
        trusted = torch.tensor(TRUSTED[space], dtype=torch.float32, device="cpu")  # see TransformerStack.use
        return torch.softmax(trusted / PRIOR_TEMPERATURE, dim=0)
    if kind == "uniform":
        return torch.full((len(PAIRS),), 1 / len(PAIRS))
    assert kind == "none", kind
    return torch.zeros(len(PAIRS))


def prior_regulariser(edges: Tensor, prior: Tensor, mask: Tensor) -> Tensor:
    """10 * sum over pairs of (ghost-batch mean of the edge - prior)^2 -> [G]."""
    return REGULARISER_WEIGHT * (sample_mean(edges, mask) - prior).square().sum(-1)


def logit_distillation(
    edges: Tensor, prior: Tensor, logits: dict[str, Tensor], mask: Tensor, *, kind: Kind = "regression"
) -> Tensor:
    """Sum over pairs of mean(weight * |student - teacher|); logits {m: [G, S]} -> [G].

    Of a classifier {m: [G, S, classes]}, the distance is the mean over classes of the absolute difference of the logits
    less their mean over the classes; of emotions {m: [G, S, L]} the mean over emotions of the absolute difference.
    """
    differences = [logits[to] - logits[source].detach() for to, source in PAIRS]
    if kind == "classes":
        differences = [centred(difference) for difference in differences]
    distances = [difference.abs() for difference in differences]
    if kind != "regression":
        distances = [distance.mean(-1) for distance in distances]
    gaps = torch.stack(distances, dim=-1)
    return sample_mean((edges + prior) * gaps, mask).sum(-1)


def representation_distillation(edges: Tensor, prior: Tensor, reprs: dict[str, Tensor], mask: Tensor) -> Tensor:
    """Sum over pairs of 10 * mean(weight) * mean(max(0, cos(student, teacher))); reprs {m: [G, S, n]} -> [G].

    As published: minimising it turns the student's representation away from the teacher's, and the edges scale it
    through their mean alone (docs/published-code.md#representation-distillation).
    """
    cosines = torch.stack([cosine(reprs[to], reprs[source].detach(), -1) for to, source in PAIRS], dim=-1)
    similarity = sample_mean(cosines.clamp(min=0), mask)  # [G, 6]
    return REPRESENTATION_WEIGHT * (sample_mean(edges + prior, mask) * similarity).sum(-1)
