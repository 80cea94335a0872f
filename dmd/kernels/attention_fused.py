"""The Triton form of `dmd.kernels.attention`: one launch forward, two backward, for all encoders of a stage.

The softmax is streamed (no attention matrix reaches memory); heads of 5 or 10 channels are padded in registers only;
the causal offset, padding and dropout are computed in the kernel; backward computes the weights again and uses no
atomics, so it is deterministic. TRITON_INTERPRET=1 runs it on a CPU, for tests.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmd.kernels.attention import AttentionPlan
from dmd.kernels.noise import Noise, cut, keep_scale

LOG2_E = math.log2(math.e)
MIN_DOT = 16
"""Smallest side of a Triton matrix product."""


@triton.jit
def _kept(word, odd, key_low, key_high, cut_at):
    """Whether dropout keeps elements: the hash of `dmd.kernels.noise`, in unsigned arithmetic."""
    x = (word + key_low).to(tl.uint32, bitcast=True)
    high = key_high.to(tl.uint32, bitcast=True)
    x = ((x ^ (x >> 16)) * 0x7FEB352D) ^ high
    x = ((x ^ (x >> 15)) * 0x846CA68B) ^ high
    x = x ^ (x >> 16)
    half = tl.where(odd == 1, x >> 16, x & 0xFFFF)
    return (half ^ 0x8000) >= cut_at.to(tl.uint32, bitcast=True)


@triton.jit
def _weights(q, k, row, col, len_q, len_k, shift, scale):
    """2 ** (score - shift) of a tile, 0 where hidden."""
    score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    span = tl.abs(len_q - len_k)
    seen = (col[None, :] <= row[:, None] + span) & (col[None, :] < len_k) & (row[:, None] < len_q)
    return tl.where(seen, tl.exp2(score - shift[:, None]), 0.0), seen


@triton.jit
def _locate(shape, keys, pid, blocks, bh, HEADS: tl.constexpr, GHOST: tl.constexpr, LAST: tl.constexpr):
    """What a program works on: encoder, block, sample, head, lengths, first row, dropout's cut and key."""
    e = pid // blocks
    block = pid % blocks
    b = bh // HEADS
    h = bh % HEADS
    len_q = tl.load(shape + 3 * e)
    len_k = tl.load(shape + 3 * e + 1)
    cut_at = tl.load(shape + 3 * e + 2)
    ghosts = tl.num_programs(1) // HEADS // GHOST
    at = keys + 2 * (e * ghosts + b // GHOST)
    key_low = tl.load(at)
    key_high = tl.load(at + 1)
    first = 0
    if LAST:
        first = len_q - 1
    return e, block, b, h, len_q, len_k, cut_at, key_low, key_high, first


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, o_ptr, sums_ptr, shape, keys, scales, q_e, q_b, q_t, k_e, k_b, k_t, o_e, o_b, o_t, rows,
    blocks, scale, HEADS: tl.constexpr, GHOST: tl.constexpr, LAST: tl.constexpr, DROP: tl.constexpr, HEAD: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1)
    e, block, b, h, len_q, len_k, cut_at, key_low, key_high, first = _locate(
        shape, keys, tl.program_id(0), blocks, bh, HEADS, GHOST, LAST
    )
    local = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row = first + local
    channel = tl.arange(0, WIDTH)
    q_mask = (row[:, None] < len_q) & (channel[None, :] < HEAD)
    q = tl.load(q_ptr + e * q_e + b * q_b + local[:, None] * q_t + h * HEAD + channel[None, :], q_mask, 0.0)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    end = tl.minimum(len_k, first + (block + 1) * BLOCK_M + tl.abs(len_q - len_k))
    for begin in range(0, end, BLOCK_N):
        col = begin + tl.arange(0, BLOCK_N)
        kv_mask = (col[:, None] < len_k) & (channel[None, :] < HEAD)
        offset = e * k_e + b * k_b + col[:, None] * k_t + h * HEAD + channel[None, :]
        k = tl.load(k_ptr + offset, kv_mask, 0.0)
        v = tl.load(v_ptr + offset, kv_mask, 0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        seen = (col[None, :] <= row[:, None] + tl.abs(len_q - len_k)) & (col[None, :] < len_k)
        score = tl.where(seen, score, -1e30)
        new_top = tl.maximum(top, tl.max(score, 1))
        weights = tl.where(seen, tl.exp2(score - new_top[:, None]), 0.0)
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, 1)
        if DROP:
            word = (((b % GHOST) * HEADS + h) * len_q + row[:, None]) * ((len_k + 1) // 2) + col[None, :] // 2
            weights = tl.where(_kept(word, (col % 2)[None, :], key_low, key_high, cut_at), weights, 0.0)
        mixed = mixed * decay[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        top = new_top
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None] * tl.load(scales + e)
    o_at = o_ptr + e * o_e + b * o_b + local[:, None] * o_t + h * HEAD + channel[None, :]
    tl.store(o_at, mixed.to(o_ptr.dtype.element_ty), q_mask)
    sums = top + tl.log2(tl.where(total > 0, total, 1.0))
    tl.store(sums_ptr + (e * tl.num_programs(1) + bh) * rows + local, sums, row < len_q)


@triton.jit
def _backward_query(
    q_ptr, k_ptr, v_ptr, o_ptr, go_ptr, sums_ptr, gq_ptr, shape, keys, scales, q_e, q_b, q_t, k_e, k_b, k_t, o_e, o_b,
    o_t, rows, blocks, scale, factor, HEADS: tl.constexpr, GHOST: tl.constexpr, LAST: tl.constexpr, DROP: tl.constexpr,
    HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1)
    e, block, b, h, len_q, len_k, cut_at, key_low, key_high, first = _locate(
        shape, keys, tl.program_id(0), blocks, bh, HEADS, GHOST, LAST
    )
    keep = tl.load(scales + e)
    local = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row = first + local
    channel = tl.arange(0, WIDTH)
    q_mask = (row[:, None] < len_q) & (channel[None, :] < HEAD)
    o_at = e * o_e + b * o_b + local[:, None] * o_t + h * HEAD + channel[None, :]
    q = tl.load(q_ptr + e * q_e + b * q_b + local[:, None] * q_t + h * HEAD + channel[None, :], q_mask, 0.0)
    go = tl.load(go_ptr + o_at, q_mask, 0.0)
    mean = tl.sum(go.to(tl.float32) * tl.load(o_ptr + o_at, q_mask, 0.0).to(tl.float32), 1)
    shift = tl.load(sums_ptr + (e * tl.num_programs(1) + bh) * rows + local, row < len_q, 0.0)
    gq = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    end = tl.minimum(len_k, first + (block + 1) * BLOCK_M + tl.abs(len_q - len_k))
    for begin in range(0, end, BLOCK_N):
        col = begin + tl.arange(0, BLOCK_N)
        kv_mask = (col[:, None] < len_k) & (channel[None, :] < HEAD)
        offset = e * k_e + b * k_b + col[:, None] * k_t + h * HEAD + channel[None, :]
        k = tl.load(k_ptr + offset, kv_mask, 0.0)
        v = tl.load(v_ptr + offset, kv_mask, 0.0)
        weights, _ = _weights(q, k, row, col, len_q, len_k, shift, scale)
        grad = tl.dot(go, tl.trans(v), input_precision="ieee") * keep
        if DROP:
            word = (((b % GHOST) * HEADS + h) * len_q + row[:, None]) * ((len_k + 1) // 2) + col[None, :] // 2
            grad = tl.where(_kept(word, (col % 2)[None, :], key_low, key_high, cut_at), grad, 0.0)
        grad = weights * (grad - mean[:, None])
        gq += tl.dot(grad.to(k.dtype), k, input_precision="ieee")
    tl.store(gq_ptr + o_at, (gq * factor).to(gq_ptr.dtype.element_ty), q_mask)


@triton.jit
def _backward_key(
    q_ptr, k_ptr, v_ptr, o_ptr, go_ptr, sums_ptr, gk_ptr, gv_ptr, shape, keys, scales, q_e, q_b, q_t, k_e, k_b, k_t,
    o_e, o_b, o_t, g_e, g_b, g_t, rows, blocks, scale, factor, HEADS: tl.constexpr, GHOST: tl.constexpr,
    LAST: tl.constexpr,
    DROP: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1)
    e, block, b, h, len_q, len_k, cut_at, key_low, key_high, first = _locate(
        shape, keys, tl.program_id(0), blocks, bh, HEADS, GHOST, LAST
    )
    keep = tl.load(scales + e)
    col = block * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, WIDTH)
    kv_mask = (col[:, None] < len_k) & (channel[None, :] < HEAD)
    offset = e * k_e + b * k_b + col[:, None] * k_t + h * HEAD + channel[None, :]
    k = tl.load(k_ptr + offset, kv_mask, 0.0)
    v = tl.load(v_ptr + offset, kv_mask, 0.0)
    gk = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    gv = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    start = tl.maximum(0, block * BLOCK_N - tl.abs(len_q - len_k) - first) // BLOCK_M * BLOCK_M
    for begin in range(start, len_q - first, BLOCK_M):
        local = begin + tl.arange(0, BLOCK_M)
        row = first + local
        q_mask = (row[:, None] < len_q) & (channel[None, :] < HEAD)
        o_at = e * o_e + b * o_b + local[:, None] * o_t + h * HEAD + channel[None, :]
        q = tl.load(q_ptr + e * q_e + b * q_b + local[:, None] * q_t + h * HEAD + channel[None, :], q_mask, 0.0)
        go = tl.load(go_ptr + o_at, q_mask, 0.0)
        mean = tl.sum(go.to(tl.float32) * tl.load(o_ptr + o_at, q_mask, 0.0).to(tl.float32), 1)
        shift = tl.load(sums_ptr + (e * tl.num_programs(1) + bh) * rows + local, row < len_q, 0.0)
        weights, _ = _weights(q, k, row, col, len_q, len_k, shift, scale)
        grad = tl.dot(go, tl.trans(v), input_precision="ieee") * keep
        dropped = weights * keep
        if DROP:
            word = (((b % GHOST) * HEADS + h) * len_q + row[:, None]) * ((len_k + 1) // 2) + col[None, :] // 2
            kept = _kept(word, (col % 2)[None, :], key_low, key_high, cut_at)
            grad = tl.where(kept, grad, 0.0)
            dropped = tl.where(kept, dropped, 0.0)
        gv += tl.dot(tl.trans(dropped).to(go.dtype), go, input_precision="ieee")
        grad = weights * (grad - mean[:, None])
        gk += tl.dot(tl.trans(grad).to(q.dtype), q, input_precision="ieee")
    g_at = e * g_e + b * g_b + col[:, None] * g_t + h * HEAD + channel[None, :]
    tl.store(gk_ptr + g_at, (gk * factor).to(gk_ptr.dtype.element_ty), kv_mask)
    tl.store(gv_ptr + g_at, gv.to(gv_ptr.dtype.element_ty), kv_mask)


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
        _forward[grid](query, key, value, out, sums, *launch.tables, *_strides(query), *_strides(key), *_strides(out),
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
        _backward_query[grid](query, key, value, out, grad_out, sums, grad_q, *launch.tables, *common, launch.rows,
                              blocks, *ends, **launch.constants)  # fmt: skip
        grid, blocks = launch.grid(key.shape[2], launch.key_block)
        _backward_key[grid](query, key, value, out, grad_out, sums, grad_k, grad_v, *launch.tables, *common,
                            *_strides(grad_k), launch.rows, blocks, *ends, **launch.constants)  # fmt: skip
        return grad_q, grad_k, grad_v, None, None, None
