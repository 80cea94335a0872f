"""The reference implementation of DMD's encoders, a baseline: one ghost batch at a time, one encoder after the other,
attention matrices held in memory, dropout by `torch.dropout`. Same weights, same mathematics.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import EncoderStack, LayerWeights
from dmd.kernels.portable import PortableBackend
from dmd.model import DMD


class OneByOne(PortableBackend):
    """Encoders without any batching."""

    def encode(
        self,
        stack: EncoderStack,
        inputs: Sequence[Tensor],
        sources: Sequence[Tensor] | None = None,
        *,
        key_ranges: Sequence[Tensor] | None = None,
        rng: DropoutRNG | None = None,
    ) -> list[Tensor]:
        """As `Backend.encode`, of the published model: padding is seen."""
        assert key_ranges is None
        training = rng is not None
        results = []
        for encoder, own in enumerate(inputs):
            x = _embed(stack, own, training)
            source = None if sources is None else _embed(stack, sources[encoder], training)
            for weights in stack.layers:
                x = _layer(stack, weights, encoder, x, source, training)
            x = F.layer_norm(x, x.shape[-1:], stack.norm_weight[encoder], stack.norm_bias[encoder])
            results.append(x[:, -1] if stack.plan.last_step else x)
        return results


def _embed(stack: EncoderStack, x: Tensor, training: bool) -> Tensor:
    positions = stack.tables["positions"][: x.shape[1]] * (x[..., :1] != 0)
    return F.dropout(math.sqrt(stack.plan.dim) * x + positions, stack.plan.embed_rate, training)


def _layer(
    stack: EncoderStack, weights: LayerWeights, e: int, x: Tensor, source: Tensor | None, training: bool
) -> Tensor:
    dim, plan = x.shape[-1:], stack.plan
    queries, keys, heads = plan.queries[e], plan.keys[e], plan.heads
    query = F.layer_norm(x, dim, weights.norm_weight[0, e], weights.norm_bias[0, e])
    key = query if source is None else F.layer_norm(source, dim, weights.norm_weight[0, e], weights.norm_bias[0, e])
    q_weight, k_weight, v_weight = weights.in_proj_weight[e].chunk(3)
    q_bias, k_bias, v_bias = weights.in_proj_bias[e].chunk(3)
    q, k, v = (
        F.linear(part, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part, weight, bias in ((query, q_weight, q_bias), (key, k_weight, k_bias), (key, v_weight, v_bias))
    )
    hidden = torch.full((queries, keys), -math.inf, device=q.device).triu(1 + abs(queries - keys))
    scores = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + hidden, dim=-1)
    mixed = (F.dropout(scores, plan.attn_rates[e], training) @ v).transpose(1, 2).flatten(2)
    x = x + F.linear(mixed, weights.out_proj_weight[e], weights.out_proj_bias[e])
    hidden = F.layer_norm(x, dim, weights.norm_weight[1, e], weights.norm_bias[1, e])
    hidden = F.linear(hidden, weights.fc1_weight[e], weights.fc1_bias[e]).relu()
    return x + F.linear(hidden, weights.fc2_weight[e], weights.fc2_bias[e])


def reference(model: DMD) -> DMD:
    """Let this backend compute a model, in place."""
    model.use(OneByOne())
    return model
