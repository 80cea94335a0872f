"""DMD's encoders as one would write them for a GPU in plain torch: the peer that the Triton kernels have to beat.

Encoders of equal lengths and dropout in one batch, `scaled_dot_product_attention`, dropout by torch. Same weights, same
mathematics, no custom kernel; `torch.compile` takes it as it stands.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmd.model import DMD
from dmd.model.encoder_layer import EncoderLayer, grouped_linear
from dmd.model.transformer import TransformerStack

ALIGNED = 8
"""Channels of a head are padded to a multiple of this: fast attention kernels take no others."""


class TorchNoise:
    """Stands for `dmd.kernels.noise.Noise`, with masks from torch's own generator."""

    fused = False

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def keep(self, shape: Sequence[int], rate: float, *, batch_dim: int, dtype: torch.dtype) -> Tensor:
        """A mask with 0 (probability `rate`) or 1 / (1 - rate)."""
        kept = torch.rand(tuple(shape), device=self.device) >= rate
        return kept.to(dtype) / (1 - rate)


class Batched(nn.Module):
    """A `TransformerStack` whose encoders run in batches of equal shape."""

    fused_plan = None

    def __init__(self, stack: TransformerStack) -> None:
        super().__init__()
        self.stack = stack
        self.groups: dict[tuple[int, int, float], list[int]] = {}
        for group, plan in zip(stack.groups, stack.plans, strict=True):
            self.heads = plan.heads
            for place, member in enumerate(group.members):
                self.groups.setdefault((group.queries[place], group.keys[place], plan.rates[place]), []).append(member)
        for number, members in enumerate(self.groups.values()):
            self.register_buffer(f"chosen{number}", torch.tensor(members), persistent=False)
        for number, (queries, keys, _) in enumerate(self.groups):
            if queries != keys:
                seen = torch.ones(queries, keys, dtype=torch.bool).tril(abs(queries - keys))
                self.register_buffer(f"seen{number}", seen, persistent=False)

    def forward(
        self,
        inputs: Sequence[Tensor],
        sources: Sequence[Tensor] | None = None,
        *,
        valid: Sequence[Tensor] | None = None,
        noise: object = None,
    ) -> list[Tensor]:
        """As `TransformerStack.forward`, of the published model: padding is seen."""
        assert valid is None
        training = noise is not None
        results = list(inputs)
        for number, ((queries, keys, rate), members) in enumerate(self.groups.items()):
            chosen = self.get_buffer(f"chosen{number}")
            seen = None if queries == keys else self.get_buffer(f"seen{number}")
            x = self._embed([inputs[e] for e in members], training)  # [E, B, Tq, d]
            source = None if sources is None else self._embed([sources[e] for e in members], training)
            for layer in self.stack.layers:
                assert isinstance(layer, EncoderLayer)
                x = self._layer(layer, chosen, x, source, seen, rate if training else 0.0)
            x = _norm(x, self.stack.norm_weight[chosen], self.stack.norm_bias[chosen])
            for place, member in enumerate(members):
                results[member] = x[place, :, -1] if self.stack.last_step else x[place]
        return results

    def _embed(self, parts: Sequence[Tensor], training: bool) -> Tensor:
        x = torch.stack(tuple(parts))
        positions = self.stack.get_buffer("positions")[: x.shape[2]] * (x[..., :1] != 0)
        return F.dropout(math.sqrt(self.stack.dim) * x + positions, self.stack.embed_dropout, training)

    def _layer(
        self, layer: EncoderLayer, e: Tensor, x: Tensor, source: Tensor | None, seen: Tensor | None, rate: float
    ) -> Tensor:
        gain, shift, dim = layer.norm_weight[:, e], layer.norm_bias[:, e], x.shape[-1]
        query = _norm(x, gain[0], shift[0])
        weight, bias = layer.in_proj_weight[e], layer.in_proj_bias[e]
        if source is None:
            q, k, v = grouped_linear(query, weight, bias).chunk(3, dim=-1)
        else:
            q = grouped_linear(query, weight[:, :dim], bias[:, :dim])
            k, v = grouped_linear(_norm(source, gain[0], shift[0]), weight[:, dim:], bias[:, dim:]).chunk(2, dim=-1)
        mixed = self._attention(q, k, v, seen, rate)
        x = x + grouped_linear(mixed, layer.out_proj_weight[e], layer.out_proj_bias[e])
        hidden = grouped_linear(_norm(x, gain[1], shift[1]), layer.fc1_weight[e], layer.fc1_bias[e]).relu()
        return x + grouped_linear(hidden, layer.fc2_weight[e], layer.fc2_bias[e])

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, rate: float) -> Tensor:
        """[E, B, T, d] each; `seen` [Tq, Tk], None: causal."""
        encoders, width = q.shape[0], q.shape[-1] // self.heads
        padding = -width % ALIGNED
        q, k, v = (
            F.pad(part.flatten(0, 1).unflatten(-1, (self.heads, width)).transpose(1, 2), (0, padding))
            for part in (q, k, v)
        )  # [E B, H, T, w]
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, dropout_p=rate, is_causal=seen is None, scale=width**-0.5
        )
        return mixed[..., :width].transpose(1, 2).flatten(2).unflatten(0, (encoders, -1))


def _norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of x [E, B, T, d] with the gain and shift [E, d] of each encoder."""
    return F.layer_norm(x, x.shape[-1:]) * gain[:, None, None] + shift[:, None, None]


def batched(model: DMD) -> DMD:
    """Replace the three stages of a model, in place."""
    for stage in ("shared_encoders", "crossmodal_encoders", "memory_encoders"):
        setattr(model, stage, Batched(getattr(model, stage)))
    return model
