"""Stacks of equal transformer encoders (MulT, Tsai et al. 2019), whose weights lie in tensors `[E, ...]`.

The module holds a stack's parameters; a backend computes it (`dmd.kernels.interface`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dmd.kernels.cpu import CPU
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import EncoderStack, StackPlan
from dmd.kernels.interface import Backend
from dmd.model.encoder_layer import EncoderLayer


class TransformerStack(nn.Module):
    """E transformer encoders of one stage.

    Args:
        plan: their shapes and rates.
        backend: what computes them.
    """

    def __init__(self, plan: StackPlan, backend: Backend = CPU) -> None:
        super().__init__()
        assert plan.dim % plan.heads == 0, f"{plan.heads} heads of {plan.dim} channels"
        self.plan = plan
        encoders = len(plan.queries)
        self.layers = nn.ModuleList(EncoderLayer(encoders, plan.dim) for _ in range(plan.levels))
        self.norm_weight = nn.Parameter(torch.ones(encoders, plan.dim))
        self.norm_bias = nn.Parameter(torch.zeros(encoders, plan.dim))
        self._tables: tuple[str, ...] = ()
        self.use(backend)

    def use(self, backend: Backend) -> None:
        """Let a backend compute the stack from here on."""
        self.backend = backend
        for name in self._tables:
            delattr(self, name)
        with torch.device("cpu"):  # for their sums on `meta` PyTorch would import its compiler, a second
            tables = backend.tables(self.plan)
        for name, table in tables.items():
            dtype = self.norm_weight.dtype if table.is_floating_point() else table.dtype
            self.register_buffer(name, table.to(self.norm_weight.device, dtype), persistent=False)
        self._tables = tuple(tables)

    def forward(
        self,
        inputs: Sequence[Tensor],
        sources: Sequence[Tensor] | None = None,
        *,
        key_ranges: Sequence[Tensor] | None = None,
        rng: DropoutRNG | None = None,
    ) -> list[Tensor]:
        """Encode inputs [B, Tq, d], attending to sources [B, Tk, d]: see `Backend.encode`."""
        return self.backend.encode(self.tensors(), inputs, sources, key_ranges=key_ranges, rng=rng)

    def tensors(self) -> EncoderStack:
        """The stack as a backend reads it."""
        layers = []
        for layer in self.layers:
            assert isinstance(layer, EncoderLayer)
            layers.append(layer.weights())
        return EncoderStack(
            plan=self.plan,
            layers=layers,
            norm_weight=self.norm_weight,
            norm_bias=self.norm_bias,
            tables={name: self.get_buffer(name) for name in self._tables},
        )
