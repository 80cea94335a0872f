"""A stack of equal transformer encoders as a backend gets it: its plan, its weights and its small tables.

PyTorch runs encoders of near lengths as one batch, the Triton kernels all of a stack together. Places in those groups
and their padded lengths number the elements of dropout, so that every backend drops the same ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.rng import DropoutRNG

PADDING_ALLOWANCE = 1.25
"""Encoders share a batch when padding to the longest raises their attention work by no more than this factor."""


class Group(NamedTuple):
    """Encoders of a stack that run as one batch."""

    members: tuple[int, ...]
    """Their numbers in the stack."""
    queries: tuple[int, ...]
    """Their query lengths."""
    keys: tuple[int, ...]
    """Their key lengths."""


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


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What a layer of a group of encoders is, beside its tensors."""

    attention: AttentionPlan
    relu_rate: float
    """Dropout after the ReLU."""
    res_rate: float
    """Dropout of each residual branch."""


@dataclass(frozen=True, kw_only=True)
class StackPlan:
    """Shapes and rates of a stack of E encoders."""

    dim: int
    """Channels of every encoder."""
    heads: int
    levels: int
    """Layers."""
    queries: tuple[int, ...]
    """Length of each encoder's input."""
    keys: tuple[int, ...]
    """Length of each encoder's source; for self-attention that of its input."""
    attn_rates: tuple[float, ...]
    """Dropout of each encoder's attention weights."""
    res_rate: float
    relu_rate: float
    embed_rate: float
    last_step: bool
    """Only the last time step of each encoder is wanted."""

    @cached_property
    def groups(self) -> list[Group]:
        """Encoders that PyTorch runs as one batch."""
        return group_by_length(self.queries, self.keys)

    def layer(self, group: Group, *, last_step: bool) -> LayerPlan:
        """A layer of a group, of whose steps the last one alone may be wanted."""
        attention = AttentionPlan(
            heads=self.heads,
            queries=group.queries,
            keys=group.keys,
            rates=tuple(self.attn_rates[member] for member in group.members),
            last_step=last_step,
        )
        return LayerPlan(attention=attention, relu_rate=self.relu_rate, res_rate=self.res_rate)

    def table(self) -> Tensor:
        """[E, 5] int32 (see `dmd.kernels.common.triton_rows`)."""
        rows = [[0] * 5 for _ in self.queries]
        for group in self.groups:
            for place, member in enumerate(group.members):
                own = [self.queries[member], self.keys[member], place]
                rows[member] = [*own, max(group.queries), max(group.keys)]
        return torch.tensor(rows, dtype=torch.int32)

    def dropout_keys(self, rng: DropoutRNG, *, sources: bool) -> dict[str, Tensor]:
        """{kind: [E, B, 2]} of every dropout of the stack that has a rate, in the order of PyTorch's call sites.

        Kinds are `embed`, `source`, and of layer l `attention{l}`, `res{l}`, `relu{l}` and `mlp{l}`.
        """
        kinds: dict[str, list[tuple[int, ...]]] = {}
        for group in self.groups:
            attends = any(self.attn_rates[member] for member in group.members)
            embeds = self.embed_rate > 0
            steps: list[tuple[str, bool]] = [("embed", embeds), ("source", sources and embeds)]
            for level in range(self.levels):
                steps += [
                    (f"attention{level}", attends),
                    (f"res{level}", self.res_rate > 0),
                    (f"relu{level}", self.relu_rate > 0),
                    (f"mlp{level}", self.res_rate > 0),
                ]
            for kind, drops in steps:
                if not drops:
                    continue
                call_site = rng.next_call_site()
                own = kinds.setdefault(kind, [(0, 0)] * len(self.queries))
                for place, member in enumerate(group.members):
                    own[member] = (call_site, place) if kind.startswith("attention") else (call_site,)
        if not kinds:
            return {}
        table = rng.table([path for own in kinds.values() for path in own])
        return dict(zip(kinds, table.split(len(self.queries)), strict=True))


class LayerWeights(NamedTuple):
    """Parameters of one layer of E encoders, each contiguous, under the names of `dmd.model.encoder_layer`."""

    in_proj_weight: Tensor
    """[E, 3d, d]: query, key, value."""
    in_proj_bias: Tensor
    """[E, 3d]."""
    out_proj_weight: Tensor
    """[E, d, d]."""
    out_proj_bias: Tensor
    """[E, d]."""
    fc1_weight: Tensor
    """[E, 4d, d]."""
    fc1_bias: Tensor
    """[E, 4d]."""
    fc2_weight: Tensor
    """[E, d, 4d]."""
    fc2_bias: Tensor
    """[E, d]."""
    norm_weight: Tensor
    """[2, E, d]: gains of the layer norms before the attention and before the MLP."""
    norm_bias: Tensor
    """[2, E, d]: their shifts."""

    def of(self, members: Tensor) -> "LayerWeights":
        """Those of some encoders, [M] of them in ascending order."""
        if len(members) == len(self.in_proj_bias):
            return self
        parts = zip(self._fields, self, strict=True)
        return LayerWeights(*(part.index_select(1 if name.startswith("norm") else 0, members) for name, part in parts))


class EncoderStack(NamedTuple):
    """A stack in one forward pass."""

    plan: StackPlan
    layers: Sequence[LayerWeights]
    norm_weight: Tensor
    """[E, d]: gain of the layer norm after the last layer."""
    norm_bias: Tensor
    """[E, d]: its shift."""
    tables: Mapping[str, Tensor]
    """What `Backend.tables` gave, on the device."""
