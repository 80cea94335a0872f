"""The straightforward form of DMD's encoders, as a baseline: one ghost batch at a time, one encoder after the other,
attention matrices held in memory, dropout by `torch.dropout`. Same weights, same mathematics.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmd.kernels.noise import Noise
from dmd.model import DMD
from dmd.model.encoder_layer import EncoderLayer
from dmd.model.transformer import TransformerStack


class OneByOne(nn.Module):
    """A `TransformerStack` without any of its batching."""

    fused_plan = None

    def __init__(self, stack: TransformerStack) -> None:
        super().__init__()
        self.stack = stack
        self.shape = {}
        for plan in stack.plans:
            self.heads = plan.heads
        for group, plan in zip(stack.groups, stack.plans, strict=True):
            for place, member in enumerate(group.members):
                self.shape[member] = (group.queries[place], group.keys[place], plan.rates[place])

    def forward(
        self,
        inputs: Sequence[Tensor],
        sources: Sequence[Tensor] | None = None,
        *,
        valid: Sequence[Tensor] | None = None,
        noise: Noise | None = None,
    ) -> list[Tensor]:
        """As `TransformerStack.forward`, of the published model: padding is seen."""
        assert valid is None
        training = noise is not None
        results = []
        for encoder, own in enumerate(inputs):
            x = self._embed(own, training)
            source = None if sources is None else self._embed(sources[encoder], training)
            for layer in self.stack.layers:
                x = self._layer(layer, encoder, x, source, training)
            x = F.layer_norm(x, x.shape[-1:], self.stack.norm_weight[encoder], self.stack.norm_bias[encoder])
            results.append(x[:, -1] if self.stack.last_step else x)
        return results

    def _embed(self, x: Tensor, training: bool) -> Tensor:
        positions = self.stack.get_buffer("positions")[: x.shape[1]] * (x[..., :1] != 0)
        return F.dropout(math.sqrt(self.stack.dim) * x + positions, self.stack.embed_dropout, training)

    def _layer(self, layer: EncoderLayer, e: int, x: Tensor, source: Tensor | None, training: bool) -> Tensor:
        dim = x.shape[-1:]
        queries, keys, rate = self.shape[e]
        query = F.layer_norm(x, dim, layer.norm_weight[0, e], layer.norm_bias[0, e])
        key = query if source is None else F.layer_norm(source, dim, layer.norm_weight[0, e], layer.norm_bias[0, e])
        q_weight, k_weight, v_weight = layer.in_proj_weight[e].chunk(3)
        q_bias, k_bias, v_bias = layer.in_proj_bias[e].chunk(3)
        q, k, v = (
            F.linear(part, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part, weight, bias in ((query, q_weight, q_bias), (key, k_weight, k_bias), (key, v_weight, v_bias))
        )
        hidden = torch.full((queries, keys), -math.inf, device=q.device).triu(1 + abs(queries - keys))
        weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + hidden, dim=-1)
        mixed = (F.dropout(weights, rate, training) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, layer.out_proj_weight[e], layer.out_proj_bias[e])
        hidden = F.layer_norm(x, dim, layer.norm_weight[1, e], layer.norm_bias[1, e])
        hidden = F.linear(hidden, layer.fc1_weight[e], layer.fc1_bias[e]).relu()
        return x + F.linear(hidden, layer.fc2_weight[e], layer.fc2_bias[e])


def straightforward(model: DMD) -> DMD:
    """Replace the three stages of a model, in place."""
    for stage in ("shared_encoders", "crossmodal_encoders", "memory_encoders"):
        setattr(model, stage, OneByOne(getattr(model, stage)))
    return model
