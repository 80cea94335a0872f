"""The reference implementation of DMD's encoders, a baseline: one ghost batch at a time, one encoder after the other,
attention matrices held in memory, dropout by `torch.dropout`. Same weights, same mathematics.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import EncoderStack, LayerWeights
from dmd.kernels.portable import PortableBackend
from dmd.model import DMD

MOST_SHAPES = 64
"""Variants of a layer that may be compiled: the compiler gives up at 8 by default, and a preset has up to 15."""


class OneByOne(PortableBackend):
    """Encoders without any batching.

    Args:
        layer: `reference_layer`, or what `torch.compile` made of it.
    """

    def __init__(self, layer: Callable[..., Tensor]) -> None:
        self.layer_of_one = layer

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
        training, plan = rng is not None, stack.plan
        results = []
        for encoder, own in enumerate(inputs):
            x = _embed(stack, own, training)
            source = None if sources is None else _embed(stack, sources[encoder], training)
            rate = plan.attn_rates[encoder] if training else 0.0
            for weights in stack.layers:
                norms = (weights.norm_weight[:, encoder], weights.norm_bias[:, encoder])
                rest = [weight[encoder] for weight in weights[: -len(norms)]]
                x = self.layer_of_one(x, source, LayerWeights(*rest, *norms), heads=plan.heads, rate=rate)
            x = F.layer_norm(x, x.shape[-1:], stack.norm_weight[encoder], stack.norm_bias[encoder])
            results.append(x[:, -1] if plan.last_step else x)
        return results


def _embed(stack: EncoderStack, x: Tensor, training: bool) -> Tensor:
    positions = stack.tables["positions"][: x.shape[1]] * (x[..., :1] != 0)
    return F.dropout(math.sqrt(stack.plan.dim) * x + positions, stack.plan.embed_rate, training)


def reference_layer(x: Tensor, source: Tensor | None, weights: LayerWeights, *, heads: int, rate: float) -> Tensor:
    """A layer of one encoder.

    Args:
        x: [B, Tq, d].
        source: [B, Tk, d]; None: x.
        weights: of the encoder, each without its axis of encoders.
        rate: dropout of the attention weights; 0: none.
    """
    dim = x.shape[-1:]
    gain, shift = weights.norm_weight, weights.norm_bias
    query = F.layer_norm(x, dim, gain[0], shift[0])
    key = query if source is None else F.layer_norm(source, dim, gain[0], shift[0])
    q_weight, k_weight, v_weight = weights.in_proj_weight.chunk(3)
    q_bias, k_bias, v_bias = weights.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(part, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part, weight, bias in ((query, q_weight, q_bias), (key, k_weight, k_bias), (key, v_weight, v_bias))
    )
    queries, keys = query.shape[1], key.shape[1]
    hidden = torch.full((queries, keys), -math.inf, device=q.device).triu(1 + abs(queries - keys))
    scores = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2) + hidden, dim=-1)
    mixed = (F.dropout(scores, rate, rate > 0) @ v).transpose(1, 2).flatten(2)
    x = x + F.linear(mixed, weights.out_proj_weight, weights.out_proj_bias)
    hidden = F.layer_norm(x, dim, gain[1], shift[1])
    hidden = F.linear(hidden, weights.fc1_weight, weights.fc1_bias).relu()
    return x + F.linear(hidden, weights.fc2_weight, weights.fc2_bias)


def reference(model: DMD) -> DMD:
    """Let this backend compute a model, in place."""
    model.use(OneByOne(reference_layer))
    return model


def compiled_reference(model: DMD) -> DMD:
    """The same with each layer through `torch.compile`, in place; a layer of new shapes is compiled when it comes."""
    torch._dynamo.config.recompile_limit = MOST_SHAPES
    model.use(OneByOne(torch.compile(reference_layer, dynamic=False)))
    return model
