"""Stacks of equal transformer encoders (MulT, Tsai et al. 2019) that run as one batched computation.

The weights of the encoders of one stage lie in one tensor `[E, ...]`. Encoders whose lengths are near enough run
together, padded to the longest; the rest run in groups of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmd.kernels.attention import AttentionPlan, attention
from dmd.kernels.layer_chunk import Masks, Weights
from dmd.kernels.layer_plain import plain_layer
from dmd.kernels.noise import Noise, dropout
from dmd.kernels.stack import MAX_WIDTH, StackPlan

PADDING_ALLOWANCE = 1.25
"""Encoders share a batch when padding to the longest raises their attention work by no more than this factor."""


class Group(NamedTuple):
    """Encoders of a stack that run as one batch."""

    members: tuple[int, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]


def group_by_length(queries: Sequence[int], keys: Sequence[int]) -> list[Group]:
    """Partition encoders with the given query and key lengths into batches, longest first."""
    order = sorted(range(len(queries)), key=lambda e: (-queries[e], -keys[e], e))
    groups: list[list[int]] = []
    for encoder in order:
        for group in groups:
            together = [*group, encoder]
            padded = len(together) * max(queries[e] for e in together) * max(keys[e] for e in together)
            if padded <= PADDING_ALLOWANCE * sum(queries[e] * keys[e] for e in together):
                group.append(encoder)
                break
        else:
            groups.append([encoder])
    members = [tuple(sorted(group)) for group in groups]
    return [Group(m, tuple(queries[e] for e in m), tuple(keys[e] for e in m)) for m in members]


def position_table(length: int, dim: int) -> Tensor:
    """Sinusoidal embedding [length, dim] of positions 1 .. length (FIELD.md A4; fairseq's form)."""
    half = dim // 2
    rate = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000) / (half - 1)))
    angle = torch.arange(1, length + 1, dtype=torch.float32)[:, None] * rate  # [T, half]
    table = torch.cat([angle.sin(), angle.cos()], dim=1)
    return F.pad(table, (0, dim - 2 * half))


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


class EncoderLayer(nn.Module):
    """One pre-norm layer of E encoders: attention and a ReLU MLP of width 4d, each with its residual."""

    def __init__(
        self, num_encoders: int, dim: int, *, relu_dropout: float, res_dropout: float
    ) -> None:
        super().__init__()
        self.relu_dropout = relu_dropout
        self.res_dropout = res_dropout
        self.in_proj_weight = nn.Parameter(torch.empty(num_encoders, 3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(num_encoders, 3 * dim))
        self.out_proj_weight = nn.Parameter(torch.empty(num_encoders, dim, dim))
        self.out_proj_bias = nn.Parameter(torch.zeros(num_encoders, dim))
        self.fc1_weight = nn.Parameter(torch.empty(num_encoders, 4 * dim, dim))
        self.fc1_bias = nn.Parameter(torch.zeros(num_encoders, 4 * dim))
        self.fc2_weight = nn.Parameter(torch.empty(num_encoders, dim, 4 * dim))
        self.fc2_bias = nn.Parameter(torch.zeros(num_encoders, dim))
        self.norm_weight = nn.Parameter(torch.ones(2, num_encoders, dim))
        self.norm_bias = nn.Parameter(torch.zeros(2, num_encoders, dim))
        for weight in (self.in_proj_weight, self.out_proj_weight, self.fc1_weight, self.fc2_weight):
            for encoder in weight.data:
                nn.init.xavier_uniform_(encoder)

    def forward(
        self, x: Tensor, source: Tensor | None, members: Tensor, plan: AttentionPlan, last: Tensor | None,
        noise: Noise | None, valid: Tensor | None = None,
    ) -> Tensor:
        """Map x [E, B, Tq, d] to the same shape, or to [E, B, 1, d] where `last` picks a step of each encoder, [E], or
        of each of its samples, [E, B].

        Args:
            source: normalised key and value input [E, B, Tk, d], or None for self-attention.
            members: which of the layer's encoders these are, [E].
            plan: lengths, heads and dropout of the attention.
            valid: real key frames of each sample, [E, B, 2] (see `dmd.kernels.attention`); None: all.
        """
        if x.device.type == "cpu" and not plan.fused and not torch.compiler.is_exporting():
            return self._plain(x, source, members, plan, last, noise, valid)
        dim = x.shape[-1]
        gain, shift = self.norm_weight[:, members], self.norm_bias[:, members]
        weight, bias = after_norm(self.in_proj_weight[members], self.in_proj_bias[members], gain[0], shift[0])
        key = normalise(x) if source is None else source
        if last is not None:
            x = pick_steps(x, last)  # [E, B, 1, d]
        if source is None and last is None:
            q, k, v = grouped_linear(key, weight, bias).chunk(3, dim=-1)
        else:
            q = grouped_linear(normalise(x), weight[:, :dim], bias[:, :dim])
            k, v = grouped_linear(key, weight[:, dim:], bias[:, dim:]).chunk(2, dim=-1)
        mixed = attention(q, k, v, plan, noise, valid)
        attended = grouped_linear(mixed, self.out_proj_weight[members], self.out_proj_bias[members])
        x = x + dropout(attended, self.res_dropout, noise, batch_dim=1)
        weight, bias = after_norm(self.fc1_weight[members], self.fc1_bias[members], gain[1], shift[1])
        hidden = grouped_linear(normalise(x), weight, bias).relu_()
        hidden = dropout(hidden, self.relu_dropout, noise, batch_dim=1)
        hidden = grouped_linear(hidden, self.fc2_weight[members], self.fc2_bias[members])
        return x + dropout(hidden, self.res_dropout, noise, batch_dim=1)

    def _plain(
        self, x: Tensor, source: Tensor | None, members: Tensor, plan: AttentionPlan, last: Tensor | None,
        noise: Noise | None, valid: Tensor | None,
    ) -> Tensor:
        """The same, encoder by encoder in the cache of a CPU; draws its dropout in the same order."""
        every = len(members) == len(self.in_proj_weight)
        norm_weight, norm_bias, *rest = (
            part if every else part.index_select(part.dim() - 2 if norm else 0, members)
            for norm, part in (
                (True, self.norm_weight), (True, self.norm_bias), (False, self.in_proj_weight),
                (False, self.in_proj_bias), (False, self.out_proj_weight), (False, self.out_proj_bias),
                (False, self.fc1_weight), (False, self.fc1_bias), (False, self.fc2_weight), (False, self.fc2_bias),
            )
        )  # fmt: skip
        in_proj = after_norm(rest[0], rest[1], norm_weight[0], norm_bias[0])
        fc1 = after_norm(rest[4], rest[5], norm_weight[1], norm_bias[1])
        site = None if noise is None or not any(plan.rates) else noise.next_site()
        shape = (*x.shape[:2], x.shape[2] if last is None else 1)
        masks = [
            None if noise is None or rate == 0 else noise.keep((*shape, width), rate, batch_dim=1, dtype=x.dtype)
            for rate, width in (
                (self.res_dropout, x.shape[-1]), (self.relu_dropout, 4 * x.shape[-1]), (self.res_dropout, x.shape[-1])
            )
        ]  # fmt: skip
        if last is not None and last.dim() == 1:
            last = last[:, None].expand(-1, x.shape[1])
        weights = Weights(*in_proj, rest[2], rest[3], *fc1, rest[6], rest[7])
        return plain_layer(x, source, last, weights, plan, noise, site, valid, Masks(*masks))


class TransformerStack(nn.Module):
    """E transformer encoders of one stage, batched.

    Args:
        queries: length of each encoder's input; `keys`: of its source (equal to `queries` for self-attention).
        attn_dropout: per encoder.
        last_step: whether only the last time step of each encoder is wanted.
        fused: run as Triton kernels, all encoders together.
    """

    def __init__(
        self, dim: int, heads: int, levels: int, *, queries: Sequence[int], keys: Sequence[int],
        attn_dropout: Sequence[float], relu_dropout: float, res_dropout: float, embed_dropout: float,
        last_step: bool, fused: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.embed_dropout, self.last_step = dim, embed_dropout, last_step
        self.groups = group_by_length(queries, keys)
        self.layers = nn.ModuleList(
            EncoderLayer(len(queries), dim, relu_dropout=relu_dropout, res_dropout=res_dropout)
            for _ in range(levels)
        )
        self.plans = [
            AttentionPlan(
                heads=heads, queries=group.queries, keys=group.keys, fused=fused,
                rates=tuple(attn_dropout[member] for member in group.members),
            )
            for group in self.groups
        ]  # fmt: skip
        self.norm_weight = nn.Parameter(torch.ones(len(queries), dim))
        self.norm_bias = nn.Parameter(torch.zeros(len(queries), dim))
        self.register_buffer("positions", position_table(max(*queries, *keys), dim), persistent=False)
        for number, group in enumerate(self.groups):
            self.register_buffer(f"members{number}", torch.tensor(group.members), persistent=False)
            self.register_buffer(f"last{number}", torch.tensor(group.queries) - 1, persistent=False)
        self.fused_plan: StackPlan | None = None
        if fused and dim <= MAX_WIDTH:
            from dmd.kernels.attention_fused import attention_tables

            self.fused_plan = StackPlan(
                heads=heads, levels=levels, queries=tuple(queries), keys=tuple(keys), attn_rates=tuple(attn_dropout),
                res_rate=res_dropout, relu_rate=relu_dropout, embed_rate=embed_dropout, last_step=last_step,
                groups=self.groups,
            )  # fmt: skip
            shape, scales = attention_tables(self.fused_plan.queries, self.fused_plan.keys, self.fused_plan.attn_rates)
            for name, tensor in (("table", self.fused_plan.table()), ("shape", shape), ("scales", scales)):
                self.register_buffer(name, tensor, persistent=False)

    def forward(
        self, inputs: Sequence[Tensor], sources: Sequence[Tensor] | None = None, *,
        valid: Sequence[Tensor] | None = None, noise: Noise | None = None,
    ) -> list[Tensor]:
        """Encode inputs [B, Tq, d] (attending to sources [B, Tk, d]).

        Args:
            valid: per encoder, (begin, end) of the real frames of each sample's keys, [B, 2] integers; None: all. With
                `last_step`, the last of them is what is returned.

        Returns:
            one tensor per encoder, [B, Tq, d], or [B, d] with `last_step`.
        """
        if self.fused_plan is not None and not torch.compiler.is_exporting():
            from dmd.kernels.stack_fused import run_stack

            return self.parts(run_stack(self, inputs, sources, noise, valid))
        results: list[Tensor] = [inputs[0]] * len(inputs)
        for number, group in enumerate(self.groups):
            x = self._embed([inputs[e] for e in group.members], noise)
            source = None
            if sources is not None:  # every layer normalises the same source
                source = normalise(self._embed([sources[e] for e in group.members], noise))
            real = None if valid is None else torch.stack([valid[e] for e in group.members])  # [E, B, 2]
            members, last = self.get_buffer(f"members{number}"), self.get_buffer(f"last{number}")
            if real is not None:
                last = (real[..., 1] - 1).clamp(min=0)  # [E, B]
            for depth, layer in enumerate(self.layers):
                ends = self.last_step and depth == len(self.layers) - 1
                plan = replace(self.plans[number], last_step=ends)
                x = layer(x, source, members, plan, last if ends else None, noise, real)
            gain, shift = self.norm_weight[members], self.norm_bias[members]
            x = torch.addcmul(shift[:, None, None], normalise(x), gain[:, None, None])
            for position, encoder in enumerate(group.members):
                results[encoder] = x[position, :, 0] if self.last_step else x[position, :, : group.queries[position]]
        return results

    def parts(self, whole: Tensor) -> list[Tensor]:
        """One tensor per encoder of [E, B, T, d], cut to its length; without their only step with `last_step`."""
        assert self.fused_plan is not None
        if self.last_step:
            return list(whole.squeeze(2).unbind(0))
        return [x[:, :length] for x, length in zip(whole.unbind(0), self.fused_plan.queries, strict=True)]

    def _embed(self, parts: Sequence[Tensor], noise: Noise | None) -> Tensor:
        """Pad, stack to [E, B, T, d], scale, and add positions where channel 0 is not zero (the published rule)."""
        length = max(part.shape[1] for part in parts)
        x = torch.stack([F.pad(part, (0, 0, 0, length - part.shape[1])) for part in parts])
        positions = self.get_buffer("positions")[:length].to(x.dtype) * (x[..., :1] != 0)
        return dropout(math.sqrt(self.dim) * x + positions, self.embed_dropout, noise, batch_dim=1)
