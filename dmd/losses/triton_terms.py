"""The objective's terms from a backend's kernels of losses (`dmd.losses.objective` has them in PyTorch)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.kernels.interface import LossKernels
from dmd.losses.margin import margin_loss
from dmd.losses.terms import triton_order
from dmd.model.config import MODALITIES
from dmd.model.decouple import Decoupled
from dmd.model.dmd import HEADS, SampleOutput
from dmd.model.graph import GDUnit


@dataclass(frozen=True, kw_only=True)
class KernelObjective:
    """What the terms are computed with."""

    kernels: LossKernels
    units: tuple[GDUnit, GDUnit]
    """The homogeneous and the heterogeneous one."""
    priors: Tensor
    """[2, 6], of the same."""
    regularised: bool
    """Whether edges are drawn towards the priors."""
    coefficients: Tensor
    """[17], weight of each of `triton_order()` in the total."""
    margin_constant: float | None
    """See `margin_loss`."""
    margin_smoothing: float

    def decoupling(self, features: Decoupled, mask: Tensor) -> Tensor:
        """Reconstruction, cycle and orthogonality losses, [3, G], of features [G * S, T, d]; mask [G, S]."""
        parts = [self.kernels.decoupling(mask, [of[m] for of in features]) for m in MODALITIES]
        return parts[0] + parts[1] + parts[2]

    def terms(self, output: SampleOutput, decoupling: Tensor, labels: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """As `Objective.forward`: output of G * S samples, labels and mask [G, S] -> {name: [G]} and mean edges.

        Args:
            decoupling: as `decoupling` gives it.
        """
        assert MODALITIES == ("text", "audio", "vision"), "the order that the kernels know"
        predictions = torch.stack([output.predictions[head] for head in HEADS]).float().unflatten(1, labels.shape)
        graph, edges = self.kernels.graph(
            predictions,
            labels,
            mask,
            priors=self.priors,
            regularised=self.regularised,
            reprs=[reprs[m] for reprs in (output.homo_repr, output.hetero_repr) for m in MODALITIES],
            units=[
                tensor
                for unit in self.units
                for part in (unit.logit, unit.repr, unit.edge)
                for tensor in (part.weight, part.bias)
            ],
        )
        features = torch.stack([output.margin_features[m] for m in MODALITIES]).float().unflatten(1, labels.shape)
        margin = margin_loss(
            features.transpose(0, 1),
            labels,
            mask,
            constant=self.margin_constant,
            smoothing=self.margin_smoothing,
            kernels=self.kernels,
        )
        whole = torch.cat([graph, decoupling, margin[None]])  # [17, G]
        terms = dict(zip(triton_order(), whole.unbind(0), strict=True))
        terms["edges_homo"], terms["edges_hetero"] = edges.unbind(0)
        terms["total"] = (self.coefficients[:, None] * whole).sum(0)
        return terms
