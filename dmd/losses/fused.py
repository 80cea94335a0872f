"""The objective's terms with Triton kernels (`dmd.losses.objective` has them in plain torch)."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmd.losses.margin import margin_loss
from dmd.losses.terms import triton_order
from dmd.model.config import MODALITIES
from dmd.model.dmd import HEADS, DMDOutput

if TYPE_CHECKING:
    from dmd.losses.objective import Objective


def fused_terms(objective: "Objective", output: DMDOutput, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """As `Objective.forward`: output of B = G * S samples, labels and mask [G, S] -> {name: [G]} and mean edges."""
    from dmd.kernels.decoupling_fused import FusedDecoupling
    from dmd.kernels.graph_fused import FusedGraph

    assert MODALITIES == ("text", "audio", "vision"), "the order that the kernels know"
    config = objective.config
    mask = mask.to(labels.dtype)
    predictions = torch.stack([output.predictions[head] for head in HEADS]).float().unflatten(1, labels.shape)
    reprs = [reprs[m] for reprs in (output.homo_repr, output.hetero_repr) for m in MODALITIES]
    units = [
        tensor
        for unit in (objective.homo, objective.hetero)
        for part in (unit.logit, unit.repr, unit.edge)
        for tensor in (part.weight, part.bias)
    ]
    graph, edges = FusedGraph.apply(
        predictions, labels, mask, objective.get_buffer("priors"), config.prior != "none", *reprs, *units
    )
    parts = [FusedDecoupling.apply(mask, *(features[m] for features in output.decoupled)) for m in MODALITIES]
    features = torch.stack([output.margin_features[m] for m in MODALITIES]).float().unflatten(1, labels.shape)
    constant = config.margin_constant if config.margin == "constant" else None
    margin = margin_loss(
        features.transpose(0, 1), labels, mask, constant=constant, smoothing=config.margin_smoothing, fused=True
    )
    whole = torch.cat([graph, parts[0] + parts[1] + parts[2], margin[None]])  # [17, G]
    terms = dict(zip(triton_order(), whole.unbind(0), strict=True))
    terms["edges_homo"], terms["edges_hetero"] = edges.unbind(0)
    terms["total"] = (objective.get_buffer("coefficients")[:, None] * whole).sum(0)
    return terms
