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

from dmd.kernels.attention import AttentionPlan
from dmd.kernels.block_sizes import MAX_HEAD
from dmd.kernels.noise import Noise, dropout
from dmd.kernels.stack import MAX_WIDTH, StackPlan
from dmd.model.encoder_layer import EncoderLayer, normalise

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


class TransformerStack(nn.Module):
    """E transformer encoders of one stage, batched.

    Args:
        queries: length of each encoder's input; `keys`: of its source (equal to `queries` for self-attention).
        attn_dropout: per encoder.
        last_step: whether only the last time step of each encoder is wanted.
        fused: run as Triton kernels, all encoders together. Of encoders wider than MAX_WIDTH only the attention is, and
            only with heads up to MAX_HEAD; the rest is plain torch.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        levels: int,
        *,
        queries: Sequence[int],
        keys: Sequence[int],
        attn_dropout: Sequence[float],
        relu_dropout: float,
        res_dropout: float,
        embed_dropout: float,
        last_step: bool,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.embed_dropout, self.last_step = dim, embed_dropout, last_step
        self.groups = group_by_length(queries, keys)
        self.layers = nn.ModuleList(
            EncoderLayer(len(queries), dim, relu_dropout=relu_dropout, res_dropout=res_dropout) for _ in range(levels)
        )
        self.plans = [
            AttentionPlan(
                heads=heads,
                queries=group.queries,
                keys=group.keys,
                fused=fused and dim // heads <= MAX_HEAD,
                rates=tuple(attn_dropout[member] for member in group.members),
            )
            for group in self.groups
        ]
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
                heads=heads,
                levels=levels,
                queries=tuple(queries),
                keys=tuple(keys),
                attn_rates=tuple(attn_dropout),
                res_rate=res_dropout,
                relu_rate=relu_dropout,
                embed_rate=embed_dropout,
                last_step=last_step,
                groups=self.groups,
            )
            shape, scales = attention_tables(self.fused_plan.queries, self.fused_plan.keys, self.fused_plan.attn_rates)
            for name, tensor in (("table", self.fused_plan.table()), ("shape", shape), ("scales", scales)):
                self.register_buffer(name, tensor, persistent=False)

    def use_plain(self) -> None:
        """Run in plain torch from here on."""
        self.fused_plan = None
        self.plans = [replace(plan, fused=False) for plan in self.plans]

    def forward(
        self,
        inputs: Sequence[Tensor],
        sources: Sequence[Tensor] | None = None,
        *,
        valid: Sequence[Tensor] | None = None,
        noise: Noise | None = None,
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
