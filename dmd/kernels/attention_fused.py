"""The Triton form of `dmd.kernels.attention`: one launch forward, two backward, for all encoders of a stage.

Backward uses no atomics, so it is deterministic. TRITON_INTERPRET=1 runs it on a CPU, for tests.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from dmd.kernels.attention import AttentionPlan
from dmd.kernels.attention_triton import backward_key, backward_query, forward
from dmd.kernels.noise import Noise, cut, keep_scale

LOG2_E = math.log2(math.e)
MIN_DOT = 16
"""Smallest side of a Triton matrix product."""


class _Launch:
    """Arguments that the three kernels share."""

    def __init__(self, query: Tensor, key: Tensor, plan: AttentionPlan, noise: Noise | None, site: int | None) -> None:
        encoders, batch, self.rows, dim = query.shape
        drop = site is not None
        ghost = noise.ghost_size if noise is not None and drop else batch
        head = dim // plan.heads
        rates = plan.rates if drop else (0.0,) * encoders
        shape = [(q, k, cut(rate)) for q, k, rate in zip(plan.queries, plan.keys, rates, strict=True)]
        places = range(batch // ghost)
        hashed = [[noise.key(g, site, e) if noise is not None and site is not None else (0, 0) for g in places]
                  for e in range(encoders)]  # fmt: skip
        scales = torch.tensor([keep_scale(rate) for rate in rates], device=query.device)
        integers = [torch.tensor(table, device=query.device, dtype=torch.int32) for table in (shape, hashed)]
        self.tables = (*integers, scales)
        self.block = max(MIN_DOT, min(64, triton.next_power_of_2(self.rows)))
        self.key_block = max(MIN_DOT, min(64, triton.next_power_of_2(key.shape[2])))
        self.factor = head**-0.5
        self.programs = batch * plan.heads
        self.encoders = encoders
        self.constants = {
            "HEADS": plan.heads, "GHOST": ghost, "LAST": plan.last_step, "DROP": drop, "HEAD": head,
            "WIDTH": max(MIN_DOT, triton.next_power_of_2(head)), "BLOCK_M": self.block, "BLOCK_N": self.key_block,
        }  # fmt: skip

    def grid(self, steps: int, block: int) -> tuple[tuple[int, int], int]:
        """(grid, blocks per encoder) over `steps` time steps."""
        blocks = triton.cdiv(steps, block)
        return (self.encoders * blocks, self.programs), blocks


def _strides(x: Tensor) -> tuple[int, ...]:
    assert x.stride(3) == 1
    return x.stride()[:3]


class FusedAttention(torch.autograd.Function):
    """Keeps query, key, value, the output and each row's log-sum (base 2) for backward."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, noise: Noise | None,
                site: int | None) -> Tensor:  # fmt: skip
        if value.stride() != key.stride():
            key, value = key.contiguous(), value.contiguous()
        launch = _Launch(query, key, plan, noise, site)
        out = torch.zeros(query.shape, dtype=query.dtype, device=query.device)
        sums = torch.empty(launch.encoders, launch.programs, launch.rows, device=query.device)
        grid, blocks = launch.grid(launch.rows, launch.block)
        forward[grid](query, key, value, out, sums, *launch.tables, *_strides(query), *_strides(key), *_strides(out),
                      launch.rows, blocks, launch.factor * LOG2_E, **launch.constants)  # fmt: skip
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.launch = launch
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        launch: _Launch = ctx.launch
        grad_out = gradients[0].contiguous()
        grad_q = torch.zeros_like(out)
        grad_k, grad_v = (torch.zeros(key.shape, dtype=key.dtype, device=key.device) for _ in range(2))
        common = (*_strides(query), *_strides(key), *_strides(out))
        ends = (launch.factor * LOG2_E, launch.factor)
        grid, blocks = launch.grid(launch.rows, launch.block)
        backward_query[grid](query, key, value, out, grad_out, sums, grad_q, *launch.tables, *common, launch.rows,
                              blocks, *ends, **launch.constants)  # fmt: skip
        grid, blocks = launch.grid(key.shape[2], launch.key_block)
        backward_key[grid](query, key, value, out, grad_out, sums, grad_k, grad_v, *launch.tables, *common,
                            *_strides(grad_k), launch.rows, blocks, *ends, **launch.constants)  # fmt: skip
        return grad_q, grad_k, grad_v, None, None, None
