"""One encoder layer of all encoders of a stack, as Triton kernels: three or four launches forward, seven or eight back.

Same mathematics, weights and dropped elements as `PortableBackend.layer`. Under autocast the operands of
products, queries, keys, values and the attention's output are of autocast's type; the residual stream, layer norms,
softmax, sums and gradients of weights stay in float32.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.attention.triton_launch import AttentionLaunch
from dmd.kernels.common.block_sizes import row_sizes
from dmd.kernels.common.launching import launch
from dmd.kernels.dropout.rng import keep_scale, threshold
from dmd.kernels.encoder.backward_kernels import project_backward, residual_mlp_backward
from dmd.kernels.encoder.forward_kernels import project, residual_mlp
from dmd.kernels.encoder.plan import LayerWeights
from dmd.kernels.encoder.weight_gradient_kernels import add_up_weights, mlp_weights, projection_weights

DOT_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
MAX_SPLITS = 8
ADD_ROWS, ADD_COLS = 64, 32


@dataclass(frozen=True, kw_only=True)
class LayerCall:
    """What a call of a layer is, beside its tensors."""

    table: Tensor
    """[E, 5], see `dmd.kernels.common.triton_rows`."""
    attention: AttentionLaunch
    last: bool
    """Only the last step of each encoder is wanted."""
    dtype: torch.dtype
    """Of the operands of products."""
    keys: dict[str, Tensor] = field(default_factory=dict)
    """{"res", "relu", "last": [E, ghosts, 2]} of the dropouts that are on."""
    res_rate: float = 0.0
    relu_rate: float = 0.0

    def sizes(self, dim: int, kernel: str) -> dict[str, Any]:
        """Constants of a launch over rows of `dim` channels, for the kernel of that name."""
        blocks = row_sizes(kernel, dim, half=self.dtype != torch.float32)
        return {"DIM": dim, "DOT": DOT_TYPES[self.dtype], "PRECISION": self.attention.precision, **blocks}

    def dropout(self, batch: int) -> dict[str, Any]:
        """Constants of the dropouts behind the branches and the ReLU."""
        keys = next(iter(self.keys.values()), None)
        return {
            "GHOST": batch if keys is None else batch // keys.shape[1],
            "RES": "res" in self.keys,
            "RES_THRESHOLD": threshold(self.res_rate),
            "RES_SCALE": keep_scale(self.res_rate),
            "RELU": "relu" in self.keys,
            "RELU_THRESHOLD": threshold(self.relu_rate),
            "RELU_SCALE": keep_scale(self.relu_rate),
        }

    def key(self, kind: str) -> Tensor:
        """A dropout's keys, or a tensor that no kernel reads."""
        return self.keys.get(kind, self.table)


def strides(x: Tensor) -> tuple[int, ...]:
    """(encoder, sample, step) of [E, B, T, channels]."""
    assert x.stride(3) == 1
    return x.stride()[:3]


def empty(like: Tensor, steps: int, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """[E, B, steps, dim]; steps past an encoder's length are never written nor read."""
    encoders, batch = like.shape[:2]
    assert encoders * batch * steps * dim < 2**31
    return torch.empty(encoders, batch, steps, dim, device=like.device, dtype=dtype or torch.float32)


class FusedLayer(torch.autograd.Function):
    """x [E, B, T, d] and a normalised source [E, B, Tk, d] (None: itself) -> [E, B, T, d], or [E, B, 1, d] (last)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor | None, call: LayerCall, *weights: Tensor) -> Tensor:
        w = LayerWeights(*weights)
        encoders, batch, steps, dim = x.shape
        rows = 1 if call.last else steps
        ranges, ranged = call.attention.ranges, call.attention.ranged

        def run(out: Tensor, inputs: Tensor, first: int, cols: int, **how: Any) -> None:
            sizes = call.sizes(dim, "project")
            grid = (triton.cdiv(batch * (1 if how["LAST"] else inputs.shape[2]), sizes["M"]), encoders)
            launch(
                project,
                grid,
                inputs,
                out,
                w.in_proj_weight,
                w.in_proj_bias,
                w.norm_weight,
                w.norm_bias,
                call.table,
                ranges,
                *strides(inputs),
                *strides(out),
                batch,
                FIRST=first,
                COLS=cols,
                RANGED=ranged,
                **how,
                **sizes,
            )

        if source is None and not call.last:
            whole = empty(x, steps, 3 * dim, call.dtype)
            run(whole, x, 0, 3 * dim, SIDE=0, LAST=False, NORM=True)
            query, both = whole[..., :dim], whole[..., dim:]
        else:
            key_input = x if source is None else source
            query, both = empty(x, rows, dim, call.dtype), empty(x, key_input.shape[2], 2 * dim, call.dtype)
            run(query, x, 0, dim, SIDE=0, LAST=call.last, NORM=True)
            run(both, key_input, dim, 2 * dim, SIDE=1, LAST=False, NORM=source is None)
        mixed = empty(x, rows, dim, call.dtype)
        sums = call.attention.forward(query, both[..., :dim], both[..., dim:], mixed)
        middle, out = empty(x, rows, dim), empty(x, rows, dim)
        sizes = call.sizes(dim, "residual_mlp")
        grid = (triton.cdiv(batch * rows, sizes["M"]), encoders)
        launch(
            residual_mlp,
            grid,
            mixed,
            x,
            middle,
            out,
            w.out_proj_weight,
            w.out_proj_bias,
            w.norm_weight[1],
            w.norm_bias[1],
            w.fc1_weight,
            w.fc1_bias,
            w.fc2_weight,
            w.fc2_bias,
            call.table,
            ranges,
            call.key("res"),
            call.key("relu"),
            call.key("last"),
            *strides(x),
            *strides(middle),
            batch,
            LAST=call.last,
            RANGED=ranged,
            **call.dropout(batch),
            **sizes,
        )
        ctx.save_for_backward(x, source, query, both, mixed, sums, middle, *w)
        ctx.call = call
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, source, query, both, mixed, sums, middle, *weights = ctx.saved_tensors
        call: LayerCall = ctx.call
        w = LayerWeights(*weights)
        batch, steps, dim = x.shape[1:]
        sizes = call.sizes(dim, "residual_mlp_backward")
        grad = gradients[0] if gradients[0].stride(3) == 1 else gradients[0].contiguous()
        grad_middle, grad_mixed = empty(x, middle.shape[2], dim), empty(x, middle.shape[2], dim, call.dtype)
        grid = (triton.cdiv(batch * middle.shape[2], sizes["M"]), len(x))
        launch(
            residual_mlp_backward,
            grid,
            grad,
            middle,
            grad_middle,
            grad_mixed,
            w.out_proj_weight,
            w.norm_weight[1],
            w.norm_bias[1],
            w.fc1_weight,
            w.fc1_bias,
            w.fc2_weight,
            call.table,
            call.key("res"),
            call.key("relu"),
            call.key("last"),
            *strides(grad),
            *strides(middle),
            batch,
            LAST=call.last,
            **call.dropout(batch),
            **sizes,
        )
        if source is None and not call.last:
            whole = empty(x, steps, 3 * dim, call.dtype)
            grad_q, grad_both = whole[..., :dim], whole[..., dim:]
        else:
            grad_q, grad_both = empty(x, query.shape[2], dim, call.dtype), empty(x, both.shape[2], 2 * dim, call.dtype)
        call.attention.backward(
            (query, both[..., :dim], both[..., dim:], mixed, sums, grad_mixed),
            (grad_q, grad_both[..., :dim], grad_both[..., dim:]),
        )
        grad_x = empty(x, steps, dim)
        grad_source = None if source is None else empty(x, source.shape[2], dim)

        def run(out: Tensor, **how: Any) -> None:
            sizes = call.sizes(dim, "project_backward")
            grid = (triton.cdiv(batch * out.shape[2], sizes["M"]), len(x))
            launch(
                project_backward,
                grid,
                grad_q,
                grad_both,
                grad_middle,
                x,
                out,
                w.in_proj_weight,
                w.norm_weight,
                call.table,
                call.attention.ranges,
                *strides(grad_q),
                *strides(grad_both),
                *strides(grad_middle),
                *strides(x),
                *strides(out),
                batch,
                LAST=call.last,
                RANGED=call.attention.ranged,
                **how,
                **sizes,
            )

        run(grad_x, SIDE=0, QUERY=True, KEY=source is None)
        if grad_source is not None:
            run(grad_source, SIDE=1, QUERY=False, KEY=True)
        saved = (x, x if source is None else source, mixed, middle)
        return grad_x, grad_source, None, *weight_gradients(call, w, saved, (grad_q, grad_both, grad_middle, grad))


def weight_gradients(
    call: LayerCall, w: LayerWeights, saved: tuple[Tensor, ...], grads: tuple[Tensor, ...]
) -> list[Tensor]:
    """Gradients of a layer's weights from saved = (x, key input, attention's output, middle) and those of queries, keys
    and values, middle, and output."""
    x, source, mixed, middle = saved
    grad_q, grad_both, grad_middle, grad = grads
    encoders, batch, steps, dim = x.shape
    sizes, hidden_sizes = call.sizes(dim, "projection_weights"), call.sizes(dim, "mlp_weights")
    splits = max(1, min(MAX_SPLITS, triton.cdiv(batch * steps, sizes["M"]) // 8))
    parts = torch.empty(splits, encoders, 12 * dim, dim, device=x.device)
    bias_parts = torch.empty(splits, encoders, 9 * dim, device=x.device)
    drops = call.dropout(batch)
    jobs = 2 * triton.cdiv(dim, sizes["CHUNK"]) + triton.cdiv(2 * dim, sizes["CHUNK"])
    launch(
        projection_weights,
        (jobs, encoders, splits),
        grad_q,
        grad_both,
        grad_middle,
        x,
        source,
        mixed,
        parts,
        bias_parts,
        call.table,
        call.attention.ranges,
        call.key("res"),
        *strides(grad_q),
        *strides(grad_both),
        *strides(grad_middle),
        *strides(x),
        *strides(source),
        batch,
        splits,
        encoders,
        SELF=source is x,
        LAST=call.last,
        RANGED=call.attention.ranged,
        RES=drops["RES"],
        GHOST=drops["GHOST"],
        THRESHOLD=drops["RES_THRESHOLD"],
        SCALE=drops["RES_SCALE"],
        **sizes,
    )
    launch(
        mlp_weights,
        (triton.cdiv(4 * dim, hidden_sizes["CHUNK"]), encoders, splits),
        grad,
        middle,
        parts,
        bias_parts,
        w.norm_weight[1],
        w.norm_bias[1],
        w.fc1_weight,
        w.fc1_bias,
        w.fc2_weight,
        call.table,
        call.key("relu"),
        call.key("last"),
        *strides(grad),
        *strides(middle),
        batch,
        splits,
        encoders,
        LAST=call.last,
        **drops,
        **hidden_sizes,
    )
    own = LayerWeights(*(torch.empty_like(weight) for weight in w))
    launch(
        add_up_weights,
        (4, encoders, triton.cdiv(dim, ADD_COLS)),
        parts,
        bias_parts,
        w.in_proj_weight,
        own.in_proj_bias,
        own.in_proj_weight,
        own.out_proj_bias,
        own.out_proj_weight,
        w.fc1_weight,
        own.fc1_bias,
        own.fc1_weight,
        own.fc2_bias,
        own.fc2_weight,
        w.norm_weight,
        w.norm_bias,
        own.norm_weight,
        own.norm_bias,
        splits,
        encoders,
        DIM=dim,
        R=ADD_ROWS,
        C=ADD_COLS,
    )
    return list(own)
