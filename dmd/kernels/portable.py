"""The backend in PyTorch that is right on any device: GPUs without Triton, and what `torch.export` writes.

Encoders of near lengths run as one batch, padded to the longest.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dmd.kernels.attention.exportable import torch_attention
from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import EncoderStack, LayerPlan, LayerWeights, StackPlan
from dmd.kernels.interface import Backend, LossKernels


class PortableBackend(Backend):
    """Single PyTorch operations; other backends take from it what they have nothing better for."""

    name: Literal["fused", "plain"] = "plain"
    keys_on_device = True
    losses: LossKernels | None = None

    def tables(self, plan: StackPlan) -> dict[str, Tensor]:
        """Positions [T, d] of the longest sequence, and of each group its members [M] and their last steps [M]."""
        tables = {"positions": position_table(max(*plan.queries, *plan.keys), plan.dim)}
        for number, group in enumerate(plan.groups):
            tables[f"members{number}"] = torch.tensor(group.members)
            tables[f"last{number}"] = torch.tensor(group.queries) - 1
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
        """See `Backend.encode`: one group of encoders after the other."""
        plan = stack.plan
        results: list[Tensor] = [inputs[0]] * len(inputs)
        for number, group in enumerate(plan.groups):
            x = self._embed(stack, [inputs[e] for e in group.members], rng)
            source = None
            if sources is not None:  # every layer normalises the same source
                source = normalise(self._embed(stack, [sources[e] for e in group.members], rng))
            ranges = None if key_ranges is None else torch.stack([key_ranges[e] for e in group.members])  # [M, B, 2]
            members, last = stack.tables[f"members{number}"], stack.tables[f"last{number}"]
            if ranges is not None:
                last = (ranges[..., 1] - 1).clamp(min=0)  # [M, B]
            for depth, weights in enumerate(stack.layers):
                ends = plan.last_step and depth == len(stack.layers) - 1
                x = self.layer(
                    x,
                    source,
                    weights,
                    plan.layer(group, last_step=ends),
                    members=members,
                    last=last if ends else None,
                    rng=rng,
                    key_ranges=ranges,
                )
            gain, shift = stack.norm_weight[members], stack.norm_bias[members]
            x = torch.addcmul(shift[:, None, None], normalise(x), gain[:, None, None])
            for position, encoder in enumerate(group.members):
                results[encoder] = x[position, :, 0] if plan.last_step else x[position, :, : group.queries[position]]
        return results

    def encode_pairs(
        self,
        first: EncoderStack,
        second: EncoderStack,
        inputs: Sequence[Tensor],
        sources: Sequence[Tensor],
        *,
        key_ranges: tuple[Sequence[Tensor] | None, Sequence[Tensor] | None] = (None, None),
        rng: DropoutRNG | None = None,
    ) -> list[Tensor]:
        """See `Backend.encode_pairs`: one stack after the other."""
        outputs = self.encode(first, inputs, sources, key_ranges=key_ranges[0], rng=rng)
        return self.encode(second, side_by_side(outputs), key_ranges=key_ranges[1], rng=rng)

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
        """One pre-norm layer of some encoders: attention and a ReLU MLP of width 4d, each with its residual.

        Args:
            x: [M, B, Tq, d].
            source: normalised key and value input [M, B, Tk, d]; None for self-attention.
            weights: of all encoders of the stack.
            members: which of them these are, [M].
            last: the only step that is wanted of each encoder [M], or of each of its samples [M, B]; None: all are.
            rng: dropout RNG; None switches dropout off.
            key_ranges: unpadded key frames of each sample, [M, B, 2] (see `attention`); None: all.

        Returns:
            like x, or [M, B, 1, d] with `last`.
        """
        dim = x.shape[-1]
        gain, shift = weights.norm_weight[:, members], weights.norm_bias[:, members]
        weight, bias = after_norm(weights.in_proj_weight[members], weights.in_proj_bias[members], gain[0], shift[0])
        key = normalise(x) if source is None else source
        if last is not None:
            x = pick_steps(x, last)  # [M, B, 1, d]
        if source is None and last is None:
            q, k, v = grouped_linear(key, weight, bias).chunk(3, dim=-1)
        else:
            q = grouped_linear(normalise(x), weight[:, :dim], bias[:, :dim])
            k, v = grouped_linear(key, weight[:, dim:], bias[:, dim:]).chunk(2, dim=-1)
        mixed = self.attention(q, k, v, plan.attention, rng, key_ranges)
        attended = grouped_linear(mixed, weights.out_proj_weight[members], weights.out_proj_bias[members])
        x = x + self.dropout(attended, plan.res_rate, rng, batch_dim=1)
        weight, bias = after_norm(weights.fc1_weight[members], weights.fc1_bias[members], gain[1], shift[1])
        hidden = grouped_linear(normalise(x), weight, bias).relu_()
        hidden = self.dropout(hidden, plan.relu_rate, rng, batch_dim=1)
        hidden = grouped_linear(hidden, weights.fc2_weight[members], weights.fc2_bias[members])
        return x + self.dropout(hidden, plan.res_rate, rng, batch_dim=1)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        rng: DropoutRNG | None = None,
        key_ranges: Tensor | None = None,
    ) -> Tensor:
        """See `Backend.attention`. An exported program leaves the number of samples open, so it has one block."""
        call_site, whole = plan.next_call_site(rng), torch.compiler.is_exporting()
        return torch_attention(
            query, key, value, plan, rng=rng, call_site=call_site, key_ranges=key_ranges, one_block=whole
        )

    def dropout(self, x: Tensor, rate: float, rng: DropoutRNG | None, *, batch_dim: int = 0) -> Tensor:
        """See `Backend.dropout`: a product with a mask."""
        if rng is None or rate == 0:
            return x
        return x * rng.scaled_keep_mask(x.shape, rate, batch_dim=batch_dim, dtype=x.dtype)

    def _embed(self, stack: EncoderStack, parts: Sequence[Tensor], rng: DropoutRNG | None) -> Tensor:
        """Pad, stack to [M, B, T, d], scale, and add positions where channel 0 is not zero (the published rule)."""
        length = max(part.shape[1] for part in parts)
        x = torch.stack([F.pad(part, (0, 0, 0, length - part.shape[1])) for part in parts])
        positions = stack.tables["positions"][:length].to(x.dtype) * (x[..., :1] != 0)
        return self.dropout(math.sqrt(stack.plan.dim) * x + positions, stack.plan.embed_rate, rng, batch_dim=1)


PORTABLE = PortableBackend()


def position_table(length: int, dim: int) -> Tensor:
    """Sinusoidal embedding [length, dim] of positions 1 .. length, as fairseq computes it."""
    half = dim // 2
    rate = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
    angle = torch.arange(1, length + 1, dtype=torch.float32)[:, None] * rate  # [T, half]
    table = torch.cat([angle.sin(), angle.cos()], dim=1)
    return F.pad(table, (0, dim - 2 * half))


def side_by_side(parts: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive pairs of [B, T, d] as [B, T, 2d]."""
    return [torch.cat([parts[number], parts[number + 1]], dim=-1) for number in range(0, len(parts), 2)]


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One linear layer per encoder: x [E, B, T, n], weight [E, m, n], bias [E, m] -> [E, B, T, m]."""
    flat = x.flatten(1, 2)  # [E, B*T, n]
    return torch.baddbmm(bias[:, None], flat, weight.transpose(1, 2)).unflatten(1, x.shape[1:3])


def normalise(x: Tensor) -> Tensor:
    """Layer norm over the last axis without its gain and shift, which `after_norm` puts into the next layer."""
    return F.layer_norm(x, x.shape[-1:])


def after_norm(weight: Tensor, bias: Tensor, gain: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight [E, m, n] and bias [E, m] of a linear layer that takes over a layer norm's gain and shift [E, n]."""
    return weight * gain[:, None], bias + (weight @ shift[..., None]).squeeze(-1)


def pick_steps(x: Tensor, steps: Tensor) -> Tensor:
    """One step of each encoder ([E]) or of each of its samples ([E, B]): x [E, B, T, d] -> [E, B, 1, d]."""
    if steps.dim() == 1:
        return x[torch.arange(len(steps), device=x.device), :, steps].unsqueeze(2)
    return x.gather(2, steps[..., None, None].expand(-1, -1, 1, x.shape[-1]))
