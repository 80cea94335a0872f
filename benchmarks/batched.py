"""DMD's encoders as one would write them for a GPU in PyTorch: the peer that the Triton kernels have to beat.

Encoders of equal lengths and dropout in one batch, `scaled_dot_product_attention`, dropout by torch. Same weights, same
mathematics, no custom kernel; `torch.compile` takes it as it stands.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import EncoderStack, LayerWeights, StackPlan
from dmd.kernels.portable import PortableBackend, grouped_linear, position_table
from dmd.model import DMD

ALIGNED = 8
"""Channels of a head are padded to a multiple of this: fast attention kernels take no others."""


class TorchRNG:
    """Stands for `dmd.kernels.dropout.rng.DropoutRNG`, with masks from torch's own generator."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def scaled_keep_mask(self, shape: Sequence[int], rate: float, *, batch_dim: int, dtype: torch.dtype) -> Tensor:
        """A mask with 0 (probability `rate`) or 1 / (1 - rate)."""
        keep_mask = torch.rand(tuple(shape), device=self.device) >= rate
        return keep_mask.to(dtype) / (1 - rate)


class BatchedBackend(PortableBackend):
    """Encoders in batches of equal shape."""

    def tables(self, plan: StackPlan) -> dict[str, Tensor]:
        """Positions, and of each batch its members and, where lengths differ, which keys a query sees [Tq, Tk]."""
        tables = {"positions": position_table(max(*plan.queries, *plan.keys), plan.dim)}
        for number, ((queries, keys, _), members) in enumerate(batches(plan).items()):
            tables[f"chosen{number}"] = torch.tensor(members)
            if queries != keys:
                tables[f"seen{number}"] = torch.ones(queries, keys, dtype=torch.bool).tril(abs(queries - keys))
        return tables

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
        results = list(inputs)
        for number, ((queries, keys, rate), members) in enumerate(batches(plan).items()):
            chosen = stack.tables[f"chosen{number}"]
            seen = None if queries == keys else stack.tables[f"seen{number}"]
            x = _embed(stack, [inputs[e] for e in members], training)  # [E, B, Tq, d]
            source = None if sources is None else _embed(stack, [sources[e] for e in members], training)
            for weights in stack.layers:
                x = _layer(weights, chosen, x, source, seen, heads=plan.heads, rate=rate if training else 0.0)
            x = _norm(x, stack.norm_weight[chosen], stack.norm_bias[chosen])
            for place, member in enumerate(members):
                results[member] = x[place, :, -1] if plan.last_step else x[place]
        return results


def batches(plan: StackPlan) -> dict[tuple[int, int, float], list[int]]:
    """{(query length, key length, dropout): encoders} of a stack."""
    found: dict[tuple[int, int, float], list[int]] = {}
    for group in plan.groups:
        for member in group.members:
            found.setdefault((plan.queries[member], plan.keys[member], plan.attn_rates[member]), []).append(member)
    return found


def _embed(stack: EncoderStack, parts: Sequence[Tensor], training: bool) -> Tensor:
    x = torch.stack(tuple(parts))
    positions = stack.tables["positions"][: x.shape[2]] * (x[..., :1] != 0)
    return F.dropout(math.sqrt(stack.plan.dim) * x + positions, stack.plan.embed_rate, training)


def _layer(
    weights: LayerWeights, e: Tensor, x: Tensor, source: Tensor | None, seen: Tensor | None, *, heads: int, rate: float
) -> Tensor:
    gain, shift, dim = weights.norm_weight[:, e], weights.norm_bias[:, e], x.shape[-1]
    query = _norm(x, gain[0], shift[0])
    weight, bias = weights.in_proj_weight[e], weights.in_proj_bias[e]
    if source is None:
        q, k, v = grouped_linear(query, weight, bias).chunk(3, dim=-1)
    else:
        q = grouped_linear(query, weight[:, :dim], bias[:, :dim])
        k, v = grouped_linear(_norm(source, gain[0], shift[0]), weight[:, dim:], bias[:, dim:]).chunk(2, dim=-1)
    mixed = _attention(q, k, v, seen, heads=heads, rate=rate)
    x = x + grouped_linear(mixed, weights.out_proj_weight[e], weights.out_proj_bias[e])
    hidden = grouped_linear(_norm(x, gain[1], shift[1]), weights.fc1_weight[e], weights.fc1_bias[e]).relu()
    return x + grouped_linear(hidden, weights.fc2_weight[e], weights.fc2_bias[e])


def _attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, *, heads: int, rate: float) -> Tensor:
    """[E, B, T, d] each; `seen` [Tq, Tk], None: causal."""
    encoders, width = q.shape[0], q.shape[-1] // heads
    padding = -width % ALIGNED
    q, k, v = (
        F.pad(part.flatten(0, 1).unflatten(-1, (heads, width)).transpose(1, 2), (0, padding)) for part in (q, k, v)
    )  # [E B, H, T, w]
    mixed = F.scaled_dot_product_attention(
        q, k, v, attn_mask=seen, dropout_p=rate, is_causal=seen is None, scale=width**-0.5
    )
    return mixed[..., :width].transpose(1, 2).flatten(2).unflatten(0, (encoders, -1))


def _norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """Layer norm of x [E, B, T, d] with the gain and shift [E, d] of each encoder."""
    return F.layer_norm(x, x.shape[-1:]) * gain[:, None, None] + shift[:, None, None]


def batched(model: DMD) -> DMD:
    """Let this backend compute a model, in place."""
    model.use(BatchedBackend())
    return model
