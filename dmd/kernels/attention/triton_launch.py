"""Attention as Triton kernels (`Backend.attention`): one launch forward, two backward, for all encoders of a stage.

Backward uses no atomics, so it is deterministic. TRITON_INTERPRET=1 runs it on a CPU, for tests.
"""

import math
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor

from dmd.kernels.attention.plan import AttentionPlan, attention_tables
from dmd.kernels.attention.triton_kernels import backward_key, backward_query, forward
from dmd.kernels.common.block_sizes import attention_sizes
from dmd.kernels.common.launching import launch, product_precision
from dmd.kernels.dropout.rng import DropoutRNG

LOG2_E = math.log2(math.e)


class AttentionLaunch:
    """What the three launches of one call share; float32 products are in backward what they were when it was made.

    Args:
        shape: [E, 3] int32, query length, key length and dropout's threshold of each encoder.
        scales: [E] float32, what dropout multiplies the kept weights by.
        keys: [E, ghosts, 2] int32, the dropout's keys; None without dropout.
        key_ranges: [E, B, 2] int32, the unpadded key frames of each sample; None: all.
    """

    def __init__(
        self,
        shape: Tensor,
        scales: Tensor,
        keys: Tensor | None,
        key_ranges: Tensor | None,
        *,
        heads: int,
        last_step: bool,
    ) -> None:
        self.heads, self.last_step, self.dropping, self.ranged = (
            heads,
            last_step,
            keys is not None,
            key_ranges is not None,
        )
        self.ranges = shape if key_ranges is None else key_ranges
        self.tables = (shape, shape if keys is None else keys, scales, self.ranges)
        self.ghosts = None if keys is None else keys.shape[1]
        self.precision = product_precision()

    def forward(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> Tensor:
        """Fill `out` [E, B, Tq, d] up to each encoder's length; returns the rows' log-sums [E, B * H, Tq]."""
        encoders, batch, rows, _ = query.shape
        assert max(key.stride(0), query.stride(0), batch * self.heads * rows) * encoders < 2**31
        sums = torch.empty(encoders, batch * self.heads, rows, device=query.device)
        grid, numbers, constants = self._grid(query, key, "forward")
        launch(
            forward,
            grid,
            query,
            key,
            value,
            out,
            sums,
            *self.tables,
            *_strides(query),
            *_strides(key),
            *_strides(out),
            *numbers,
            self._factor(query) * LOG2_E,
            **constants,
        )
        return sums

    def backward(self, kept: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> None:
        """From kept = (query, key, value, out, sums, gradient of out) fill grads = those of query, key and value."""
        query, key, value, out, sums, grad_out = kept
        grad_q, grad_k, grad_v = grads
        assert grad_out.stride() == out.stride()
        assert grad_k.stride() == grad_v.stride()
        common = (*_strides(query), *_strides(key), *_strides(out))
        factor = self._factor(query)
        grid, numbers, constants = self._grid(query, key, "backward_query")
        launch(
            backward_query,
            grid,
            query,
            key,
            value,
            out,
            grad_out,
            sums,
            grad_q,
            *self.tables,
            *common,
            *_strides(grad_q),
            *numbers,
            factor * LOG2_E,
            factor,
            **constants,
        )
        grid, numbers, constants = self._grid(query, key, "backward_key")
        launch(
            backward_key,
            grid,
            query,
            key,
            value,
            out,
            grad_out,
            sums,
            grad_k,
            grad_v,
            *self.tables,
            *common,
            *_strides(grad_k),
            *numbers,
            factor * LOG2_E,
            factor,
            **constants,
        )

    def _factor(self, query: Tensor) -> float:
        return (query.shape[-1] // self.heads) ** -0.5

    def _grid(
        self, query: Tensor, key: Tensor, kernel: str
    ) -> tuple[tuple[int], tuple[int, int, int], dict[str, int | bool | str]]:
        """(grid, (rows, encoders, blocks per encoder), constants) of a launch over blocks of rows, or of keys."""
        encoders, batch, rows, dim = query.shape
        head = dim // self.heads
        sizes = attention_sizes(head, rows, key.shape[2], half=query.dtype != torch.float32)
        constants: dict[str, int | bool | str] = {
            "HEADS": self.heads,
            "GHOST": batch if self.ghosts is None else batch // self.ghosts,
            "LAST": self.last_step,
            "DROP": self.dropping,
            "RANGED": self.ranged,
            "HEAD": head,
            "PRECISION": self.precision,
            **sizes,
        }
        over_keys = kernel == "backward_key"
        blocks = triton.cdiv(key.shape[2] if over_keys else rows, sizes["BLOCK_N" if over_keys else "BLOCK_M"])
        return (encoders * blocks * batch * self.heads,), (rows, encoders, blocks), constants


@lru_cache(maxsize=32)
def _tables_on(
    device: torch.device, queries: tuple[int, ...], keys: tuple[int, ...], rates: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """`attention_tables` in a device's memory, copied there once: a GPU waits for a copy from the host."""
    shape, scales = attention_tables(queries, keys, rates)
    return shape.to(device), scales.to(device)


def _strides(x: Tensor) -> tuple[int, ...]:
    assert x.stride(3) == 1
    return x.stride()[:3]


class FusedAttention(torch.autograd.Function):
    """Keeps query, key, value, the output and each row's log-sum (base 2) for backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: AttentionPlan,
        rng: DropoutRNG | None,
        call_site: int | None,
        key_ranges: Tensor | None,
    ) -> Tensor:
        if value.stride() != key.stride():
            key, value = key.contiguous(), value.contiguous()
        dropping = rng is not None and call_site is not None
        rates = plan.rates if dropping else (0.0,) * len(plan.queries)
        shape, scales = _tables_on(query.device, plan.queries, plan.keys, rates)
        keys = (
            rng.table([(call_site, e) for e in range(len(rates))])
            if rng is not None and call_site is not None
            else None
        )
        ranges = None if key_ranges is None else key_ranges.to(torch.int32).contiguous()
        launch = AttentionLaunch(shape, scales, keys, ranges, heads=plan.heads, last_step=plan.last_step)
        out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
        sums = launch.forward(query, key, value, out)
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.launch = launch
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _, key, _, out, _ = ctx.saved_tensors
        grad_q = torch.zeros_like(out)
        grad_k, grad_v = (torch.zeros(key.shape, dtype=key.dtype, device=key.device) for _ in range(2))
        ctx.launch.backward((*ctx.saved_tensors, gradients[0].contiguous()), (grad_q, grad_k, grad_v))
        return grad_q, grad_k, grad_v, None, None, None, None
