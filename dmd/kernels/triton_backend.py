"""The backend of Triton kernels: all encoders of a stack in one launch per operation, and losses as kernels.

`dmd.kernels.backend.choose_execution` imports this module where it chooses it, and nothing else does: it defines the
kernels. Encoders wider than MAX_WIDTH run in PyTorch around a fused attention, and heads wider than MAX_HEAD in PyTorch
altogether; so does what `torch.export` writes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dmd.kernels.attention.plan import AttentionPlan, attention_tables
from dmd.kernels.attention.triton_launch import FusedAttention, make_launch
from dmd.kernels.common.block_sizes import MAX_HEAD, MAX_WIDTH, head_window
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.dropout.triton_dropout import FusedDropout
from dmd.kernels.encoder.plan import EncoderStack, StackPlan
from dmd.kernels.encoder.triton_stack import run_stack
from dmd.kernels.interface import LossKernels
from dmd.kernels.losses.decoupling import FusedDecoupling
from dmd.kernels.losses.graph import FusedGraph
from dmd.kernels.losses.margin import FusedMargin
from dmd.kernels.portable import PortableBackend


class TritonLosses(LossKernels):
    """Reductions over ghost batches, a launch or two each way."""

    def margin(self, rows: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """See `LossKernels.margin`."""
        loss: Tensor = FusedMargin.apply(rows, labels, mask)
        return loss

    def decoupling(self, mask: Tensor, features: Sequence[Tensor]) -> Tensor:
        """See `LossKernels.decoupling`."""
        losses: Tensor = FusedDecoupling.apply(mask, *features)
        return losses

    def graph(
        self,
        predictions: Tensor,
        labels: Tensor,
        mask: Tensor,
        *,
        priors: Tensor,
        regularised: bool,
        reprs: Sequence[Tensor],
        units: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """See `LossKernels.graph`."""
        losses, edges = FusedGraph.apply(predictions, labels, mask, priors, regularised, *reprs, *units)
        return losses, edges


class TritonBackend(PortableBackend):
    """Triton kernels as far as they know the widths."""

    name = "fused"
    keys_on_device = True
    losses = TritonLosses()

    def tables(self, plan: StackPlan) -> dict[str, Tensor]:
        """Besides PyTorch's: `table` [E, 5] (see `triton_rows`), `shape` and `scales` (see `attention_tables`)."""
        tables = super().tables(plan)
        if holds_stack(plan):
            shape, scales = attention_tables(plan.queries, plan.keys, plan.attn_rates)
            tables |= {"table": plan.table(), "shape": shape, "scales": scales}
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
        """See `Backend.encode`."""
        if torch.compiler.is_exporting() or not holds_stack(stack.plan):
            return super().encode(stack, inputs, sources, key_ranges=key_ranges, rng=rng)
        return _parts(stack.plan, run_stack(stack, inputs, sources, rng, key_ranges))

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
        """See `Backend.encode_pairs`: the second stack reads the pairs where the first one leaves them."""
        if torch.compiler.is_exporting() or not (holds_stack(first.plan) and holds_stack(second.plan)):
            return super().encode_pairs(first, second, inputs, sources, key_ranges=key_ranges, rng=rng)
        both = run_stack(first, inputs, sources, rng, key_ranges[0])
        return _parts(second.plan, run_stack(second, both, None, rng, key_ranges[1]))

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        rng: DropoutRNG | None = None,
        key_ranges: Tensor | None = None,
    ) -> Tensor:
        """See `Backend.attention`."""
        if torch.compiler.is_exporting() or not holds_heads(query.shape[-1], plan.heads):
            return super().attention(query, key, value, plan, rng, key_ranges)
        launch = make_launch(plan, rng, key_ranges, query)
        mixed: Tensor = FusedAttention.apply(query, key, value, launch)
        return mixed

    def dropout(self, x: Tensor, rate: float, rng: DropoutRNG | None, *, batch_dim: int = 0) -> Tensor:
        """See `Backend.dropout`: one launch each way."""
        if rng is None or rate == 0:
            return x
        dropped: Tensor = FusedDropout.apply(x, rate, rng, batch_dim)
        return dropped


TRITON = TritonBackend()


def holds_stack(plan: StackPlan) -> bool:
    """Whether the kernels over an encoder's channels hold all of them."""
    return plan.dim <= MAX_WIDTH


def holds_heads(dim: int, heads: int) -> bool:
    """Whether the attention's kernels hold so many heads of `dim` channels together."""
    return head_window(dim // heads, heads=heads, pack=1)[0] <= MAX_HEAD


def _parts(plan: StackPlan, whole: Tensor) -> list[Tensor]:
    """One tensor per encoder of [E, B, T, d], cut to its length; without their only step with `last_step`."""
    if plan.last_step:
        return list(whole.squeeze(2).unbind(0))
    return [x[:, :length] for x, length in zip(whole.unbind(0), plan.queries, strict=True)]
