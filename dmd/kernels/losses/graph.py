"""Both GD-Units with their losses, and the task losses, in three Triton launches: one forward, two backward.

The same numbers as `dmd.model.graph.GDUnit` and `dmd.losses.distillation`. Sums are float32.
"""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from dmd.kernels.common.launching import launch
from dmd.kernels.common.saved import restore, save
from dmd.kernels.losses.graph_backward_kernels import backward, backward_weights
from dmd.kernels.losses.graph_forward_kernels import LOSS_ROWS, PAIRS, ROLES, forward

GRAPHS = 2
"""The homogeneous and the heterogeneous one."""


class GhostBatches(NamedTuple):
    """G ghost batches of S samples."""

    predictions: Tensor
    """[8, G, S], float32, in the order of `dmd.model.dmd.HEADS`."""
    labels: Tensor
    """[G, S]."""
    mask: Tensor
    """[G, S], 1 for a sample, 0 for padding."""
    priors: Tensor
    """[2, 6], of the homogeneous and of the heterogeneous graph."""


class Reprs(NamedTuple):
    """Representations of a space, or their gradients, [G * S, n] each."""

    text: Tensor
    audio: Tensor
    vision: Tensor


class Unit(NamedTuple):
    """Parameters of a GD-Unit of size k over representations of n channels, or their gradients."""

    logit_weight: Tensor
    """[k, 1]."""
    logit_bias: Tensor
    """[k]."""
    repr_weight: Tensor
    """[k, n]."""
    repr_bias: Tensor
    """[k]."""
    edge_weight: Tensor
    """[1, 4k]."""
    edge_bias: Tensor
    """[1]."""


def _unit_sizes(homo: Unit, hetero: Unit) -> dict[str, int]:
    """Constants of all three kernels."""
    sizes: dict[str, int] = {}
    for graph, unit in (("HOMO", homo), ("HETERO", hetero)):
        size, channels = unit.repr_weight.shape
        sizes |= {
            f"{graph}_CHANNELS": channels,
            f"{graph}_WIDTH": triton.next_power_of_2(channels),
            f"{graph}_SIZE": size,
            f"{graph}_PADDED_SIZE": triton.next_power_of_2(size),
        }
    wide_enough = sizes["HETERO_WIDTH"] // 32  # registers for the wide representations
    return {**sizes, "num_warps": max(4, min(16, wide_enough))}


def _named(prefix: str, tensors: Reprs | Unit) -> dict[str, Tensor]:
    """A kernel's arguments: the tensors under their names after a prefix."""
    return {f"{prefix}_{name}": tensor for name, tensor in zip(tensors._fields, tensors, strict=True)}


class FusedGraph(torch.autograd.Function):
    """(losses [13, G], mean edges [2, G, 6]).

    Arguments: the fields of `GhostBatches`, with `regularised` (whether edges are drawn towards the priors) after
    them; then one by one the tensors of the homogeneous `Reprs`, the heterogeneous ones, and both `Unit`s.
    """

    @staticmethod
    def forward(
        ctx: Any, predictions: Tensor, labels: Tensor, mask: Tensor, priors: Tensor, regularised: bool, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        given = iter(tensors)
        homo_reprs, hetero_reprs = (Reprs(*(next(given).contiguous() for _ in Reprs._fields)) for _ in range(GRAPHS))
        homo, hetero = (Unit(*(next(given) for _ in Unit._fields)) for _ in range(GRAPHS))
        batches = GhostBatches(predictions.contiguous(), labels.contiguous(), mask.contiguous(), priors)
        ghosts, samples = labels.shape
        losses = torch.empty(LOSS_ROWS.value, ghosts, device=labels.device)
        mean_edges = torch.empty(GRAPHS, ghosts, PAIRS.value, device=labels.device)
        ctx.unit_sizes = _unit_sizes(homo, hetero)
        ctx.batch_sizes = {"REGULARISED": 1.0 if regularised else 0.0, "S": triton.next_power_of_2(samples)}
        launch(
            forward,
            (ghosts, GRAPHS),
            **batches._asdict(),
            **_named("homo", homo_reprs),
            **_named("hetero", hetero_reprs),
            **_named("homo", homo),
            **_named("hetero", hetero),
            losses=losses,
            mean_edges=mean_edges,
            ghosts=ghosts,
            samples=samples,
            **ctx.batch_sizes,
            **ctx.unit_sizes,
        )
        save(ctx, batches, homo_reprs, hetero_reprs, homo, hetero)
        ctx.mark_non_differentiable(mean_edges)
        return losses, mean_edges

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        batches, homo_reprs, hetero_reprs, homo, hetero = restore(ctx)
        ghosts, samples = batches.labels.shape
        device = batches.labels.device
        grad_predictions = torch.empty_like(batches.predictions)
        grad_reprs = [Reprs(*(torch.empty_like(x) for x in reprs)) for reprs in (homo_reprs, hetero_reprs)]
        grad_units = [Unit(*(torch.empty_like(x) for x in unit)) for unit in (homo, hetero)]
        shares = {
            f"{graph}_shares": torch.empty(ghosts, ROLES.value, unit.repr_weight.shape[1] + 2, device=device)
            for graph, unit in (("homo", homo), ("hetero", hetero))
        }
        launch(
            backward,
            (ghosts, GRAPHS),
            **batches._asdict(),
            upstream=gradients[0].contiguous(),
            **_named("homo", homo_reprs),
            **_named("hetero", hetero_reprs),
            **_named("homo", homo),
            **_named("hetero", hetero),
            grad_predictions=grad_predictions,
            **_named("grad_homo", grad_reprs[0]),
            **_named("grad_hetero", grad_reprs[1]),
            **shares,
            ghosts=ghosts,
            samples=samples,
            **ctx.batch_sizes,
            **ctx.unit_sizes,
        )
        parameters = _named("homo", homo) | _named("hetero", hetero)
        del parameters["homo_edge_bias"], parameters["hetero_edge_bias"]  # no gradient depends on them
        launch(
            backward_weights,
            (GRAPHS,),
            **shares,
            **parameters,
            **_named("grad_homo", grad_units[0]),
            **_named("grad_hetero", grad_units[1]),
            ghosts=ghosts,
            **ctx.unit_sizes,
        )
        return grad_predictions, None, None, None, None, *grad_reprs[0], *grad_reprs[1], *grad_units[0], *grad_units[1]
