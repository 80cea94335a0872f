"""The backend in PyTorch made for CPUs: a whole encoder layer of a few samples at a time stays in the cache.

Tensors on another device, and programs that `torch.export` writes, take the portable implementation.
"""

import torch
from torch import Tensor

from dmd.kernels.attention.cpu import PlainAttention
from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.noise import Noise
from dmd.kernels.encoder.cpu_layer import plain_layer
from dmd.kernels.encoder.cpu_layer_chunk import Masks, Weights
from dmd.kernels.encoder.plan import LayerPlan, LayerWeights
from dmd.kernels.portable import PortableBackend, after_norm


class CpuBackend(PortableBackend):
    """Layers and attention as `dmd.kernels.encoder.cpu_layer` and `dmd.kernels.attention.cpu` compute them."""

    keys_on_device = False

    def layer(
        self,
        x: Tensor,
        source: Tensor | None,
        weights: LayerWeights,
        plan: LayerPlan,
        *,
        members: Tensor,
        last: Tensor | None,
        noise: Noise | None,
        valid: Tensor | None,
    ) -> Tensor:
        """See `PortableBackend.layer`: encoder by encoder; draws its dropout in the same order."""
        if _elsewhere(x):
            return super().layer(x, source, weights, plan, members=members, last=last, noise=noise, valid=valid)
        own = weights if len(members) == len(weights.in_proj_bias) else weights.of(members)
        in_weight, in_bias = after_norm(own.in_proj_weight, own.in_proj_bias, own.norm_weight[0], own.norm_bias[0])
        fc1_weight, fc1_bias = after_norm(own.fc1_weight, own.fc1_bias, own.norm_weight[1], own.norm_bias[1])
        normed = Weights(
            in_weight=in_weight,
            in_bias=in_bias,
            out_weight=own.out_proj_weight,
            out_bias=own.out_proj_bias,
            fc1_weight=fc1_weight,
            fc1_bias=fc1_bias,
            fc2_weight=own.fc2_weight,
            fc2_bias=own.fc2_bias,
        )
        site = plan.attention.next_site(noise)
        encoders, batch, steps, dim = x.shape
        rows = (encoders, batch, steps if last is None else 1)

        def mask(rate: float, width: int) -> Tensor | None:
            if noise is None or rate == 0:
                return None
            return noise.keep((*rows, width), rate, batch_dim=1, dtype=x.dtype)

        masks = Masks(
            attended=mask(plan.res_rate, dim),
            relu=mask(plan.relu_rate, 4 * dim),
            mlp=mask(plan.res_rate, dim),
        )
        if last is not None and last.dim() == 1:
            last = last[:, None].expand(-1, batch)
        return plain_layer(x, source, last, normed, plan.attention, noise, site, valid, masks)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        noise: Noise | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """See `Backend.attention`."""
        if _elsewhere(query):
            return super().attention(query, key, value, plan, noise, valid)
        mixed: Tensor = PlainAttention.apply(query, key, value, plan, noise, plan.next_site(noise), valid)
        return mixed


CPU = CpuBackend()


def _elsewhere(x: Tensor) -> bool:
    """Whether a tensor is not, or will not be, on a CPU."""
    return x.device.type != "cpu" or torch.compiler.is_exporting()
