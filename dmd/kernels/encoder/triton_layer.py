"""One encoder layer of all encoders of a stack, as Triton kernels: three or four launches forward, six to eight back.

Same mathematics, weights and dropped elements as `PortableBackend.layer`. Under autocast the operands of
products, queries, keys, values and the attention's output are of autocast's type; the residual stream, layer norms,
softmax, sums and gradients of weights stay in float32.
"""

from typing import Any

import torch
from torch import Tensor

from dmd.kernels.common.rows import empty_rows
from dmd.kernels.common.saved import restore, save
from dmd.kernels.common.triton_rows import KEYS, QUERIES
from dmd.kernels.encoder.backward_kernels import launch_project_backward, launch_residual_mlp_backward
from dmd.kernels.encoder.forward_kernels import launch_project, launch_residual_mlp
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.triton_layer_call import Activations, LayerCall, WeightOperands, operand_places
from dmd.kernels.encoder.weight_gradient_kernels import weight_gradients


class FusedLayer(torch.autograd.Function):
    """Rows x [E, B, T, S] and normalised rows [E, B, Tk, S] of a source (None: of x) -> [E, B, T or 1, S] (1: last)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor | None, call: LayerCall, *tensors: Tensor) -> Tensor:
        weights = LayerWeights(*tensors)
        slot, rows = call.slot, 1 if call.last else x.shape[2]
        if source is None and not call.last:
            whole = empty_rows(x, rows, 3 * slot, call.dtype)
            query, key, value = whole.split(slot, dim=-1)
            launch_project(call, weights, x, whole, first=0, side=QUERIES.value, last=False, norm=True)
        else:
            key_input = x if source is None else source
            query = empty_rows(x, rows, slot, call.dtype)
            key_value = empty_rows(x, key_input.shape[2], 2 * slot, call.dtype)
            key, value = key_value.split(slot, dim=-1)
            launch_project(call, weights, x, query, first=0, side=QUERIES.value, last=call.last, norm=True)
            launch_project(
                call, weights, key_input, key_value, first=1, side=KEYS.value, last=False, norm=source is None
            )
        mixed = empty_rows(x, rows, slot, call.dtype)
        log_sums = call.attention.forward(query, key, value, mixed).log_sums
        middle, out = empty_rows(x, rows, slot), empty_rows(x, rows, slot)
        launch_residual_mlp(call, weights, x, mixed, middle=middle, out=out)
        save(ctx, Activations(x, source, query, key, value, mixed, log_sums, middle), weights)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        activations, weights = restore(ctx)
        call: LayerCall = ctx.call
        x, source, slot = activations.x, activations.source, call.slot
        steps, rows = x.shape[2], activations.middle.shape[2]
        grad_middle, grad_mixed = empty_rows(x, rows, slot), empty_rows(x, rows, slot, call.dtype)
        others = empty_rows(x, rows, operand_places(call.dim)["OPERANDS"], call.dtype)
        launch_residual_mlp_backward(
            call,
            weights,
            activations,
            gradients[0].contiguous(),
            grad_middle=grad_middle,
            grad_mixed=grad_mixed,
            operands=others,
        )
        if source is None and not call.last:
            grad_query, grad_key, grad_value = empty_rows(x, rows, 3 * slot, call.dtype).split(slot, dim=-1)
        else:
            grad_query = empty_rows(x, rows, slot, call.dtype)
            key_steps = activations.key.shape[2]
            grad_key, grad_value = empty_rows(x, key_steps, 2 * slot, call.dtype).split(slot, dim=-1)
        call.attention.backward(
            activations.attended(), grad_mixed, grad_query=grad_query, grad_key=grad_key, grad_value=grad_value
        )
        normed = empty_rows(x, steps, slot, call.dtype)
        operands = WeightOperands(grad_query, grad_key, normed, activations.mixed, others)
        grad_x = empty_rows(x, steps, slot)
        launch_project_backward(
            call, weights, x, operands, grad_middle, grad_x, side=QUERIES.value, query=True, key=source is None
        )
        grad_source = None
        if source is not None:
            grad_source = empty_rows(x, source.shape[2], slot)
            launch_project_backward(
                call, weights, x, operands, grad_middle, grad_source, side=KEYS.value, query=False, key=True
            )
        return grad_x, grad_source, None, *weight_gradients(call, weights, source, operands)
