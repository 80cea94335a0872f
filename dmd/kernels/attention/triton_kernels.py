"""Triton kernels of the attention: streamed softmax, heads padded in registers only, nothing kept but row sums.

Tensors are [E, B, T, H * h]; a program works on one block of rows (or keys) of one head of one sample of one encoder.
`shape` holds (query length, key length, dropout's threshold) of each encoder, `keys` the dropout key of each encoder
and ghost batch, `scales` what dropout multiplies the kept weights by. With RANGED, `key_ranges` [E, B, 2] holds the
first unpadded key frame of each sample and the end of its unpadded key frames. A program whose block lies past its
encoder's length has nothing to do: such rows are neither written nor read. `dmd.kernels.attention.triton_launch`
launches them.
"""

import triton
import triton.language as tl

from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import keep_mask


@triton.jit
def _weights(q, k, row, col, len_q, len_k, first_key, end, shift, scale, PRECISION: tl.constexpr):
    """2 ** (score - shift) of a tile, 0 where hidden."""
    score = product(q, tl.trans(k), PRECISION) * scale
    seen = _seen(row, col, len_q, len_k, first_key, end) & (row[:, None] < len_q)
    return tl.where(seen, tl.exp2(score - shift[:, None]), 0.0)


@triton.jit
def _seen(row, col, len_q, len_k, first_key, end):
    """Which keys of a tile its queries see: offset causal, and unpadded."""
    span = tl.abs(len_q - len_k)
    return (col[None, :] <= row[:, None] + span) & (col[None, :] >= first_key) & (col[None, :] < end)


@triton.jit
def _key_range(key_ranges, e, b, batch, len_k, RANGED: tl.constexpr):
    """First unpadded key frame of a sample, and the end of its unpadded key frames."""
    first_key = 0
    end = len_k
    if RANGED:
        first_key = tl.maximum(tl.load(key_ranges + 2 * (e * batch + b)), 0)
        end = tl.minimum(tl.load(key_ranges + 2 * (e * batch + b) + 1), len_k)
    return first_key, end


@triton.jit
def _locate(shape, keys, encoders, blocks, HEADS: tl.constexpr, GHOST: tl.constexpr, LAST: tl.constexpr):
    """What a program works on: encoder, block, sample, head, their number in the encoder, samples, lengths, first row,
    dropout's threshold and key. Programs are numbered by block, encoder, head, sample, the first fastest."""
    pid = tl.program_id(0)
    block = pid % blocks
    e = pid // blocks % encoders
    bh = pid // blocks // encoders
    batch = tl.num_programs(0) // blocks // encoders // HEADS
    b = bh // HEADS
    h = bh % HEADS
    len_q = tl.load(shape + 3 * e)
    len_k = tl.load(shape + 3 * e + 1)
    threshold = tl.load(shape + 3 * e + 2)
    at = keys + 2 * (e * (batch // GHOST) + b // GHOST)
    key_low = tl.load(at)
    key_high = tl.load(at + 1)
    first = 0
    if LAST:
        first = len_q - 1
    return e, block, b, h, bh, batch, len_q, len_k, threshold, key_low, key_high, first


@triton.jit
def forward(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    sums_ptr,
    shape,
    keys,
    scales,
    key_ranges,
    q_e,
    q_b,
    q_t,
    k_e,
    k_b,
    k_t,
    o_e,
    o_b,
    o_t,
    rows,
    encoders,
    blocks,
    scale,
    HEADS: tl.constexpr,
    GHOST: tl.constexpr,
    LAST: tl.constexpr,
    DROP: tl.constexpr,
    RANGED: tl.constexpr,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attention output and each row's log-sum (base 2)."""
    e, block, b, h, bh, batch, len_q, len_k, threshold, key_low, key_high, first = _locate(
        shape, keys, encoders, blocks, HEADS, GHOST, LAST
    )
    if first + block * BLOCK_M >= len_q:
        return
    local = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row = first + local
    channel = tl.arange(0, WIDTH)
    q_mask = (row[:, None] < len_q) & (channel[None, :] < HEAD)
    q = tl.load(q_ptr + e * q_e + b * q_b + local[:, None] * q_t + h * HEAD + channel[None, :], q_mask, 0.0)
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    first_key, end_key = _key_range(key_ranges, e, b, batch, len_k, RANGED)
    end = tl.minimum(end_key, first + (block + 1) * BLOCK_M + tl.abs(len_q - len_k))
    for begin in range(first_key // BLOCK_N * BLOCK_N, end, BLOCK_N):
        col = begin + tl.arange(0, BLOCK_N)
        kv_mask = (col[:, None] < len_k) & (channel[None, :] < HEAD)
        offset = e * k_e + b * k_b + col[:, None] * k_t + h * HEAD + channel[None, :]
        k = tl.load(k_ptr + offset, kv_mask, 0.0)
        v = tl.load(v_ptr + offset, kv_mask, 0.0)
        score = product(q, tl.trans(k), PRECISION) * scale
        seen = _seen(row, col, len_q, len_k, first_key, end_key)
        score = tl.where(seen, score, -1e30)
        new_top = tl.maximum(top, tl.max(score, 1))
        weights = tl.where(seen, tl.exp2(score - new_top[:, None]), 0.0)
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, 1)
        if DROP:
            word = (((b % GHOST) * HEADS + h) * len_q + row[:, None]) * ((len_k + 1) // 2) + col[None, :] // 2
            weights = tl.where(keep_mask(word, (col % 2)[None, :], key_low, key_high, threshold), weights, 0.0)
        mixed = mixed * decay[:, None] + product(weights.to(v.dtype), v, PRECISION)
        top = new_top
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None] * tl.load(scales + e)
    o_at = o_ptr + e * o_e + b * o_b + local[:, None] * o_t + h * HEAD + channel[None, :]
    tl.store(o_at, mixed.to(o_ptr.dtype.element_ty), q_mask)
    sums = top + tl.log2(tl.where(total > 0, total, 1.0))
    tl.store(sums_ptr + (e * batch * HEADS + bh) * rows + local, sums, row < len_q)


@triton.jit
def backward_query(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    go_ptr,
    sums_ptr,
    gq_ptr,
    shape,
    keys,
    scales,
    key_ranges,
    q_e,
    q_b,
    q_t,
    k_e,
    k_b,
    k_t,
    o_e,
    o_b,
    o_t,
    g_e,
    g_b,
    g_t,
    rows,
    encoders,
    blocks,
    scale,
    factor,
    HEADS: tl.constexpr,
    GHOST: tl.constexpr,
    LAST: tl.constexpr,
    DROP: tl.constexpr,
    RANGED: tl.constexpr,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of the query, over the keys that each row sees."""
    e, block, b, h, bh, batch, len_q, len_k, threshold, key_low, key_high, first = _locate(
        shape, keys, encoders, blocks, HEADS, GHOST, LAST
    )
    if first + block * BLOCK_M >= len_q:
        return
    keep = tl.load(scales + e)
    local = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row = first + local
    channel = tl.arange(0, WIDTH)
    q_mask = (row[:, None] < len_q) & (channel[None, :] < HEAD)
    o_at = e * o_e + b * o_b + local[:, None] * o_t + h * HEAD + channel[None, :]
    q = tl.load(q_ptr + e * q_e + b * q_b + local[:, None] * q_t + h * HEAD + channel[None, :], q_mask, 0.0)
    go = tl.load(go_ptr + o_at, q_mask, 0.0)
    mean = tl.sum(go.to(tl.float32) * tl.load(o_ptr + o_at, q_mask, 0.0).to(tl.float32), 1)
    shift = tl.load(sums_ptr + (e * batch * HEADS + bh) * rows + local, row < len_q, 0.0)
    gq = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    first_key, end_key = _key_range(key_ranges, e, b, batch, len_k, RANGED)
    end = tl.minimum(end_key, first + (block + 1) * BLOCK_M + tl.abs(len_q - len_k))
    for begin in range(first_key // BLOCK_N * BLOCK_N, end, BLOCK_N):
        col = begin + tl.arange(0, BLOCK_N)
        kv_mask = (col[:, None] < len_k) & (channel[None, :] < HEAD)
        offset = e * k_e + b * k_b + col[:, None] * k_t + h * HEAD + channel[None, :]
        k = tl.load(k_ptr + offset, kv_mask, 0.0)
        v = tl.load(v_ptr + offset, kv_mask, 0.0)
        weights = _weights(q, k, row, col, len_q, len_k, first_key, end_key, shift, scale, PRECISION)
        grad = product(go, tl.trans(v), PRECISION) * keep
        if DROP:
            word = (((b % GHOST) * HEADS + h) * len_q + row[:, None]) * ((len_k + 1) // 2) + col[None, :] // 2
            grad = tl.where(keep_mask(word, (col % 2)[None, :], key_low, key_high, threshold), grad, 0.0)
        grad = weights * (grad - mean[:, None])
        gq += product(grad.to(k.dtype), k, PRECISION)
    g_at = gq_ptr + e * g_e + b * g_b + local[:, None] * g_t + h * HEAD + channel[None, :]
    tl.store(g_at, (gq * factor).to(gq_ptr.dtype.element_ty), q_mask)


@triton.jit
def backward_key(
    q_ptr,
    k_ptr,
    v_ptr,
    o_ptr,
    go_ptr,
    sums_ptr,
    gk_ptr,
    gv_ptr,
    shape,
    keys,
    scales,
    key_ranges,
    q_e,
    q_b,
    q_t,
    k_e,
    k_b,
    k_t,
    o_e,
    o_b,
    o_t,
    g_e,
    g_b,
    g_t,
    rows,
    encoders,
    blocks,
    scale,
    factor,
    HEADS: tl.constexpr,
    GHOST: tl.constexpr,
    LAST: tl.constexpr,
    DROP: tl.constexpr,
    RANGED: tl.constexpr,
    HEAD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of key and value, over the rows that see them."""
    e, block, b, h, bh, batch, len_q, len_k, threshold, key_low, key_high, first = _locate(
        shape, keys, encoders, blocks, HEADS, GHOST, LAST
    )
    if block * BLOCK_N >= len_k:
        return
    keep = tl.load(scales + e)
    col = block * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = tl.arange(0, WIDTH)
    kv_mask = (col[:, None] < len_k) & (channel[None, :] < HEAD)
    offset = e * k_e + b * k_b + col[:, None] * k_t + h * HEAD + channel[None, :]
    k = tl.load(k_ptr + offset, kv_mask, 0.0)
    v = tl.load(v_ptr + offset, kv_mask, 0.0)
    gk = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    gv = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    first_key, end_key = _key_range(key_ranges, e, b, batch, len_k, RANGED)
    start = tl.maximum(0, block * BLOCK_N - tl.abs(len_q - len_k) - first) // BLOCK_M * BLOCK_M
    for begin in range(start, len_q - first, BLOCK_M):
        local = begin + tl.arange(0, BLOCK_M)
        row = first + local
        q_mask = (row[:, None] < len_q) & (channel[None, :] < HEAD)
        o_at = e * o_e + b * o_b + local[:, None] * o_t + h * HEAD + channel[None, :]
        q = tl.load(q_ptr + e * q_e + b * q_b + local[:, None] * q_t + h * HEAD + channel[None, :], q_mask, 0.0)
        go = tl.load(go_ptr + o_at, q_mask, 0.0)
        mean = tl.sum(go.to(tl.float32) * tl.load(o_ptr + o_at, q_mask, 0.0).to(tl.float32), 1)
        shift = tl.load(sums_ptr + (e * batch * HEADS + bh) * rows + local, row < len_q, 0.0)
        weights = _weights(q, k, row, col, len_q, len_k, first_key, end_key, shift, scale, PRECISION)
        grad = product(go, tl.trans(v), PRECISION) * keep
        dropped = weights * keep
        if DROP:
            word = (((b % GHOST) * HEADS + h) * len_q + row[:, None]) * ((len_k + 1) // 2) + col[None, :] // 2
            keeps = keep_mask(word, (col % 2)[None, :], key_low, key_high, threshold)
            grad = tl.where(keeps, grad, 0.0)
            dropped = tl.where(keeps, dropped, 0.0)
        gv += product(tl.trans(dropped).to(go.dtype), go, PRECISION)
        grad = weights * (grad - mean[:, None])
        gk += product(tl.trans(grad).to(q.dtype), q, PRECISION)
    g_at = e * g_e + b * g_b + col[:, None] * g_t + h * HEAD + channel[None, :]
    tl.store(gk_ptr + g_at, (gk * factor).to(gk_ptr.dtype.element_ty), kv_mask)
    tl.store(gv_ptr + g_at, gv.to(gv_ptr.dtype.element_ty), kv_mask)
