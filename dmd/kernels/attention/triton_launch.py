"""Attention as Triton kernels (`Backend.attention`): one launch forward, two backward, for all encoders of a stage.

Backward uses no atomics, so it is deterministic. TRITON_INTERPRET=1 runs it on a CPU, for tests.
"""

import math
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmd.kernels.attention.plan import AttentionPlan, attention_tables
from dmd.kernels.attention.triton_kernels import backward_key, backward_query, forward
from dmd.kernels.common.block_sizes import num_blocks, slot
from dmd.kernels.common.launching import capability_for, launch, product_precision
from dmd.kernels.common.measured_sizes import attention_sizes_on
from dmd.kernels.common.rows import padded_rows, row_channels
from dmd.kernels.common.saved import restore, save
from dmd.kernels.dropout.rng import DropoutRNG

LOG2_E = math.log2(math.e)


class TritonAttended(NamedTuple):
    """What a forward pass of E encoders read and wrote, which backward needs: rows (`dmd.kernels.common.rows`)."""

    query: Tensor
    """[E, B, Tq, S]."""
    key: Tensor
    """[E, B, Tk, S]."""
    value: Tensor
    """[E, B, Tk, S], a slot of rows like those of the key."""
    out: Tensor
    """[E, B, Tq, S]."""
    log_sums: Tensor
    """[E, B * H, Tq], float32: the log-sum (base 2) of each row."""


class AttentionLaunch:
    """What the three launches of one call share; float32 products are in backward what they were when it was made.

    Args:
        shape: [E, 3] int32, query length, key length and dropout's threshold of each encoder.
        scales: [E] float32, what dropout multiplies the kept weights by.
        keys: [E, B, 2] int32, the dropout's keys; None without dropout.
        ranges: [E, B, 2] int32, (begin, end) of the unpadded keys of each sample; None: all are.
        dim: channels of all heads.
        heads: H.
        last_step: queries are of the last step alone.
    """

    def __init__(
        self,
        shape: Tensor,
        scales: Tensor,
        keys: Tensor | None,
        ranges: Tensor | None,
        *,
        dim: int,
        heads: int,
        last_step: bool,
    ) -> None:
        self.dim, self.heads, self.last_step = dim, heads, last_step
        self.dropping, self.ranged = keys is not None, ranges is not None
        self.shape, self.scales = shape, scales
        self.keys = shape if keys is None else keys  # a tensor that no kernel reads
        self.ranges = shape if ranges is None else ranges
        self.precision = product_precision()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> TritonAttended:
        """Fill `out` [E, B, Tq, S] up to each encoder's length."""
        encoders, batch, rows, _ = query.shape
        log_sums = torch.empty(encoders, batch * self.heads, rows, device=query.device)
        attended = TritonAttended(query, key, value, out, log_sums)
        sizes = self.sizes("forward", query, key)
        blocks = num_blocks(rows, sizes["BLOCK_M"] // sizes["PACK"])
        launch(
            forward,
            self._grid(query, blocks, sizes["PACK"]),
            q_ptr=query,
            k_ptr=key,
            v_ptr=value,
            o_ptr=out,
            log_sums_ptr=log_sums,
            **self._common(attended, blocks),
            **sizes,
        )
        return attended

    def backward(
        self, attended: TritonAttended, grad_out: Tensor, *, grad_query: Tensor, grad_key: Tensor, grad_value: Tensor
    ) -> None:
        """From the gradient of `out` fill those of query, key and value."""
        query, key, value, out, log_sums = attended
        assert row_channels(grad_out) == row_channels(out)
        assert row_channels(grad_key) == row_channels(grad_value)
        sizes = self.sizes("backward_query", query, key)
        blocks = num_blocks(query.shape[2], sizes["BLOCK_M"] // sizes["PACK"])
        launch(
            backward_query,
            self._grid(query, blocks, sizes["PACK"]),
            q_ptr=query,
            k_ptr=key,
            v_ptr=value,
            o_ptr=out,
            go_ptr=grad_out,
            log_sums_ptr=log_sums,
            gq_ptr=grad_query,
            factor=self._factor,
            G_ROW=row_channels(grad_query),
            **self._common(attended, blocks),
            **sizes,
        )
        sizes = self.sizes("backward_key", query, key)
        blocks = num_blocks(key.shape[2], sizes["BLOCK_N"])
        launch(
            backward_key,
            self._grid(query, blocks, sizes["PACK"]),
            q_ptr=query,
            k_ptr=key,
            v_ptr=value,
            o_ptr=out,
            go_ptr=grad_out,
            log_sums_ptr=log_sums,
            gk_ptr=grad_key,
            gv_ptr=grad_value,
            factor=self._factor,
            G_ROW=row_channels(grad_key),
            **self._common(attended, blocks),
            **sizes,
        )

    def _common(self, attended: TritonAttended, blocks: int) -> dict[str, Any]:
        """Arguments that all three kernels share, for so many blocks of an encoder."""
        query, key, value, out, _ = attended
        assert row_channels(key) == row_channels(value)
        assert row_channels(out) == out.shape[3] == slot(self.dim)
        return {
            "shape": self.shape,
            "keys": self.keys,
            "scales": self.scales,
            "ranges": self.ranges,
            "batch": query.shape[1],
            "rows": query.shape[2],
            "key_steps": key.shape[2],
            "ENCODERS": len(query),
            "BLOCKS": blocks,
            "scale": self._factor * LOG2_E,
            "HEADS": self.heads,
            "LAST": self.last_step,
            "DROP": self.dropping,
            "RANGED": self.ranged,
            "HEAD": self.dim // self.heads,
            "SLOT": out.shape[3],
            "Q_ROW": row_channels(query),
            "K_ROW": row_channels(key),
            "PRECISION": self.precision,
        }

    @cached_property
    def capability(self) -> int | None:
        """Of the card that the launches run on (see `capability_for`)."""
        return capability_for(forward, self.shape.device)

    def sizes(self, kernel: str, query: Tensor, key: Tensor) -> Mapping[str, int]:
        """Block sizes and Triton's options of the kernel of that name."""
        return attention_sizes_on(
            self.capability,
            kernel,
            self.dim // self.heads,
            query.shape[2],
            key.shape[2],
            heads=self.heads,
            half=query.dtype != torch.float32,
        )

    def _grid(self, query: Tensor, blocks: int, pack: int) -> tuple[int]:
        """A program for each of so many blocks of each encoder and sample, and of each `pack` heads."""
        encoders, batch = query.shape[:2]
        return (encoders * blocks * batch * self.heads // pack,)

    @property
    def _factor(self) -> float:
        return (self.dim // self.heads) ** -0.5


@lru_cache(maxsize=32)
def _tables_on(
    device: torch.device, queries: tuple[int, ...], keys: tuple[int, ...], rates: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """`attention_tables` in a device's memory, copied there once: a GPU waits for a copy from the host."""
    shape, scales = attention_tables(queries, keys, rates)
    return shape.to(device), scales.to(device)


def make_launch(
    plan: AttentionPlan,
    rng: DropoutRNG | None,
    key_ranges: Tensor | None,
    query: Tensor,
) -> AttentionLaunch:
    """The launches of one call of an attention [E, B, Tq, d]; draws its call site where there is dropout."""
    call_site = plan.next_call_site(rng)
    rates, keys = (0.0,) * len(plan.queries), None
    if rng is not None and call_site is not None:
        rates = plan.rates
        keys = rng.table([(call_site, e) for e in range(len(rates))])
    shape, scales = _tables_on(query.device, plan.queries, plan.keys, rates)
    ranges = None if key_ranges is None else key_ranges.to(torch.int32).contiguous()
    return AttentionLaunch(shape, scales, keys, ranges, dim=query.shape[-1], heads=plan.heads, last_step=plan.last_step)


class FusedAttention(torch.autograd.Function):
    """Attention of tensors of torch [E, B, T, d], which become rows. Keeps a `TritonAttended` for backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, attention: AttentionLaunch) -> Tensor:
        ctx.attention = attention
        query, key, value = (padded_rows(x) for x in (query, key, value))
        out = torch.zeros_like(query)
        save(ctx, attention.forward(query, key, value, out))
        return out[..., : attention.dim]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (attended,) = restore(ctx)
        attention: AttentionLaunch = ctx.attention
        grads = {f"grad_{name}": torch.zeros_like(getattr(attended, name)) for name in ("query", "key", "value")}
        attention.backward(attended, padded_rows(gradients[0]), **grads)
        return *(grad[..., : attention.dim] for grad in grads.values()), None
