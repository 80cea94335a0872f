"""One encoder layer of all encoders of a stack, as Triton kernels: three or four launches forward, six to eight back.

Same mathematics, weights and dropped elements as `PortableBackend.layer`. Under autocast the operands of
products, queries, keys, values and the attention's output are of autocast's type; the residual stream, layer norms,
softmax, sums and gradients of weights stay in float32.
"""

from typing import Any

import torch
from torch import Tensor

from dmd.kernels.common.launching import dense_channels
from dmd.kernels.common.saved import restore, save
from dmd.kernels.common.triton_rows import KEYS, QUERIES
from dmd.kernels.encoder.backward_kernels import launch_project_backward, launch_residual_mlp_backward
from dmd.kernels.encoder.forward_kernels import launch_project, launch_residual_mlp
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import (
    ActivationGradients,
    Activations,
    LayerCall,
    empty,
    empty_operands,
    slots,
)
from dmd.kernels.encoder.weight_gradient_kernels import weight_gradients


class FusedLayer(torch.autograd.Function):
    """x [E, B, T, d] and a normalised source [E, B, Tk, d] (None: itself) -> [E, B, T, d], or [E, B, 1, d] (last)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor | None, call: LayerCall, *tensors: Tensor) -> Tensor:
        weights = LayerWeights(*tensors)
        dim, rows = x.shape[3], 1 if call.last else x.shape[2]
        if source is None and not call.last:
            whole = empty(x, rows, 3 * dim, call.dtype)
            query, key_value = _split(whole)
            launch_project(call, weights, x, whole, first=0, side=QUERIES.value, last=False, norm=True)
        else:
            key_input = x if source is None else source
            query = empty(x, rows, dim, call.dtype)
            key_value = empty(x, key_input.shape[2], 2 * dim, call.dtype)
            launch_project(call, weights, x, query, first=0, side=QUERIES.value, last=call.last, norm=True)
            launch_project(
                call, weights, key_input, key_value, first=dim, side=KEYS.value, last=False, norm=source is None
            )
        mixed = empty(x, rows, dim, call.dtype)
        key, value = key_value.chunk(2, dim=-1)
        log_sums = call.attention.forward(query, key, value, mixed).log_sums
        middle, out = empty(x, rows, dim), empty(x, rows, dim)
        launch_residual_mlp(call, weights, x, mixed, middle=middle, out=out)
        save(ctx, Activations(x, source, query, key_value, mixed, log_sums, middle), weights)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        activations, weights = restore(ctx)
        call: LayerCall = ctx.call
        x, source, key_value, middle = activations.x, activations.source, activations.key_value, activations.middle
        dim, rows = x.shape[3], middle.shape[2]
        grad = dense_channels(gradients[0])
        grad_middle, grad_mixed = empty(x, rows, dim), empty(x, rows, dim, call.dtype)
        operands = empty_operands(x, rows, dim, call.dtype)
        launch_residual_mlp_backward(
            call,
            weights,
            activations,
            grad,
            grad_middle=grad_middle,
            grad_mixed=grad_mixed,
            operands=operands,
        )
        if source is None and not call.last:
            grad_query, grad_key, grad_value = slots(x, rows, 3, dim, call.dtype)
        else:
            (grad_query,) = slots(x, rows, 1, dim, call.dtype)
            grad_key, grad_value = slots(x, key_value.shape[2], 2, dim, call.dtype)
        call.attention.backward(
            activations.attended(), grad_mixed, grad_query=grad_query, grad_key=grad_key, grad_value=grad_value
        )
        (normed,) = slots(x, x.shape[2], 1, dim, call.dtype)
        grads = ActivationGradients(grad_query, grad_key, grad_value, normed, operands)
        grad_x = empty(x, x.shape[2], dim)
        launch_project_backward(
            call, weights, x, grads, grad_middle, grad_x, side=QUERIES.value, query=True, key=source is None
        )
        grad_source = None
        if source is not None:
            grad_source = empty(x, source.shape[2], dim)
            launch_project_backward(
                call, weights, x, grads, grad_middle, grad_source, side=KEYS.value, query=False, key=True
            )
        return grad_x, grad_source, None, *weight_gradients(call, weights, source, grads)


def _split(whole: Tensor) -> tuple[Tensor, Tensor]:
    """Queries [..., d], and keys with values [..., 2d], of [..., 3d]: views."""
    dim = whole.shape[-1] // 3
    return whole[..., :dim], whole[..., dim:]
