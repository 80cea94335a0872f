"""What the Triton form of a stack of encoders knows before it runs: its plan, its tables, its dropout's sites.

It runs all encoders of a stack together, whatever their lengths. The plain form runs them in groups of near lengths;
places and padded lengths of those groups number the elements of dropout, so that both forms drop the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dmd.kernels.noise import Noise

MAX_WIDTH = 256
"""Channels of an encoder that the Triton form can hold in a program, on every card (`dmd.kernels.block_sizes`)."""


class EncoderGroup(Protocol):
    """Encoders that the plain form runs as one batch (see `dmd.model.transformer`)."""

    @property
    def members(self) -> tuple[int, ...]:
        """Their numbers in the stack."""

    @property
    def queries(self) -> tuple[int, ...]:
        """Their query lengths."""

    @property
    def keys(self) -> tuple[int, ...]:
        """Their key lengths."""


@dataclass(frozen=True, kw_only=True)
class StackPlan:
    """Shapes and rates of a stack."""

    heads: int
    levels: int
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    attn_rates: tuple[float, ...]
    res_rate: float
    relu_rate: float
    embed_rate: float
    last_step: bool
    groups: Sequence[EncoderGroup]

    def table(self) -> Tensor:
        """[E, 5] int32 (see `dmd.kernels.rows_triton`)."""
        rows = [[0] * 5 for _ in self.queries]
        for group in self.groups:
            for place, member in enumerate(group.members):
                own = [self.queries[member], self.keys[member], place]
                rows[member] = [*own, max(group.queries), max(group.keys)]
        return torch.tensor(rows, dtype=torch.int32)

    def dropout_keys(self, noise: Noise, *, sources: bool) -> dict[str, Tensor]:
        """{kind: [E, ghosts, 2]} of every dropout of the stack that has a rate, in the plain form's order of sites.

        Kinds are `embed`, `source`, and of layer l `attention{l}`, `res{l}`, `relu{l}` and `last{l}`.
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
                    (f"last{level}", self.res_rate > 0),
                ]
            for kind, drops in steps:
                if not drops:
                    continue
                site = noise.next_site()
                own = kinds.setdefault(kind, [(0, 0)] * len(self.queries))
                for place, member in enumerate(group.members):
                    own[member] = (site, place) if kind.startswith("attention") else (site,)
        if not kinds:
            return {}
        table = noise.table([path for own in kinds.values() for path in own])
        return dict(zip(kinds, table.split(len(self.queries)), strict=True))
