"""Both GD-Units with their losses, and the task losses, in three Triton launches: one forward, two backward.

The same numbers as `dmd.model.graph.GDUnit` and `dmd.losses.distillation`. Sums are float32.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from dmd.kernels.common.launching import launch
from dmd.kernels.losses.graph_backward_kernels import backward, backward_weights
from dmd.kernels.losses.graph_forward_kernels import forward

UNIT = 6
"""Tensors of a unit: weight and bias of `logit`, `repr` and `edge`."""
ROWS = 13


def _sizes(homo: tuple[Tensor, ...], hetero: tuple[Tensor, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for letter, unit in (("H", homo), ("X", hetero)):
        size, width = unit[2].shape
        sizes |= {
            f"{letter}N": width,
            f"{letter}WIDTH": triton.next_power_of_2(width),
            f"{letter}SIZE": size,
            f"{letter}PAD": triton.next_power_of_2(size),
        }
    return {**sizes, "num_warps": max(4, min(16, sizes["XWIDTH"] // 32))}  # registers for the wide representations


class FusedGraph(torch.autograd.Function):
    """(losses [13, G], mean edges [2, G, 6]) of predictions [8, G, S], both spaces' representations and both units.

    Arguments: predictions float32 in the order of `dmd.model.dmd.HEADS`, labels [G, S], mask [G, S], priors [2, 6],
    whether edges are regularised, representations [G * S, d] and [G * S, 2 d] of three modalities each, and weight and
    bias of `logit`, `repr` and `edge` of each unit.
    """

    @staticmethod
    def forward(
        ctx: Any, predictions: Tensor, labels: Tensor, mask: Tensor, priors: Tensor, regular: bool, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        reprs = tuple(x.contiguous() for x in tensors[:6])
        homo, hetero = tensors[6 : 6 + UNIT], tensors[6 + UNIT :]
        ghosts, samples = labels.shape
        out = torch.empty(ROWS, ghosts, device=labels.device)
        edges = torch.empty(2, ghosts, len(priors[0]), device=labels.device)
        given = (predictions.contiguous(), labels.contiguous(), mask.contiguous())
        ctx.how = {"REGULAR": 1.0 if regular else 0.0, "S": triton.next_power_of_2(samples), **_sizes(homo, hetero)}
        launch(forward, (ghosts, 2), *given, *reprs, *homo, *hetero, priors, out, edges, ghosts, samples, **ctx.how)
        ctx.save_for_backward(*given, priors, *reprs, *homo, *hetero)
        ctx.mark_non_differentiable(edges)
        return out, edges

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        predictions, labels, mask, priors, *rest = ctx.saved_tensors
        reprs, homo, hetero = rest[:6], rest[6 : 6 + UNIT], rest[6 + UNIT :]
        ghosts, samples = labels.shape
        grad_pred = torch.empty_like(predictions)
        grad_reprs = [torch.empty_like(x) for x in reprs]
        grads = [torch.empty_like(x) for x in (*homo, *hetero)]
        shares = [torch.empty(ghosts, 2 * unit[2].shape[1] + 4, device=labels.device) for unit in (homo, hetero)]
        launch(
            backward,
            (ghosts, 2),
            predictions,
            labels,
            mask,
            gradients[0].contiguous(),
            *reprs,
            *homo,
            *hetero,
            priors,
            grad_pred,
            *grad_reprs,
            *shares,
            ghosts,
            samples,
            **ctx.how,
        )
        sizes = {name: size for name, size in ctx.how.items() if name not in ("REGULAR", "S")}
        launch(backward_weights, (2,), *shares, *homo[:5], *hetero[:5], *grads, ghosts, **sizes)
        return grad_pred, None, None, None, None, *grad_reprs, *grads
