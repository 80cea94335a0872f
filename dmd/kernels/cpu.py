"""The backend in PyTorch made for CPUs: a whole encoder layer of a few samples at a time stays in the cache.

Tensors on another device, and programs that `torch.export` writes, take the portable implementation.
"""

import torch
from torch import Tensor

from dmd.kernels.attention.cpu_blocks import AttentionCall, query_scale
from dmd.kernels.dropout.rng import DropoutRNG, SampleMasks
from dmd.kernels.encoder.cpu_layer import CpuWeights, LayerDropout, cpu_layer
from dmd.kernels.encoder.plan import LayerPlan, LayerWeights
from dmd.kernels.portable import PortableBackend, after_norm, normalise, pick_steps


class CpuBackend(PortableBackend):
    """Encoder layers as `dmd.kernels.encoder.cpu_layer` computes them; the rest as on any device."""

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
        rng: DropoutRNG | None,
        key_ranges: Tensor | None,
    ) -> Tensor:
        """See `PortableBackend.layer`; draws its dropout in the same order."""
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            return super().layer(x, source, weights, plan, members=members, last=last, rng=rng, key_ranges=key_ranges)
        if last is not None:  # one query of each sample, and so attention to a source
            source = normalise(x) if source is None else source
            x = pick_steps(x, last)
        attention = AttentionCall.begin(plan.attention, rng, key_ranges)

        def masks(rate: float, width: int) -> SampleMasks | None:
            return None if rng is None or rate == 0 else rng.next_masks(rate, x.shape[2] * width)

        dim = x.shape[-1]
        dropout = LayerDropout(
            attended=masks(plan.res_rate, dim),
            hidden=masks(plan.relu_rate, 4 * dim),
            mlp=masks(plan.res_rate, dim),
        )
        return cpu_layer(x, source, cpu_weights(weights.of(members), plan.attention.heads), attention, dropout)


CPU = CpuBackend()


def cpu_weights(weights: LayerWeights, heads: int) -> CpuWeights:
    """The parameters of encoders as their products read them."""
    dim = weights.out_proj_bias.shape[-1]
    gain, shift = weights.norm_weight, weights.norm_bias  # [2, E, d]
    in_weight, in_bias = after_norm(weights.in_proj_weight, weights.in_proj_bias, gain[0], shift[0])
    fc1_weight, fc1_bias = after_norm(weights.fc1_weight, weights.fc1_bias, gain[1], shift[1])
    query_weight, key_value_weight = in_weight.split((dim, 2 * dim), dim=1)
    query_bias, key_value_bias = in_bias.split((dim, 2 * dim), dim=1)
    scale = query_scale(dim // heads)
    return CpuWeights(
        query_weight=_by_channel(query_weight * scale, 1, heads),
        query_bias=_by_channel(query_bias * scale, 1, heads),
        key_value_weight=_by_channel(key_value_weight.unflatten(1, (2, dim)), 2, heads).flatten(1, 2),
        key_value_bias=_by_channel(key_value_bias.unflatten(1, (2, dim)), 2, heads).flatten(1, 2),
        out_weight=_by_channel(weights.out_proj_weight, 2, heads),
        out_bias=weights.out_proj_bias,
        fc1_weight=fc1_weight,
        fc1_bias=fc1_bias,
        fc2_weight=weights.fc2_weight,
        fc2_bias=weights.fc2_bias,
    )


def _by_channel(x: Tensor, axis: int, heads: int) -> Tensor:
    """Sort an axis of d channels, which are by head and then by channel of a head, by channel and then by head."""
    return x.unflatten(axis, (heads, -1)).transpose(axis, axis + 1).flatten(axis, axis + 1)
