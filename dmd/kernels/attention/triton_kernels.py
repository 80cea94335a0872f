"""Triton kernels of the attention: streamed softmax, heads padded in registers only, nothing kept but log-sums of rows.

Tensors are rows [E, B, T, S] (`dmd.kernels.common.rows`): encoders, samples, steps, and H heads of h channels side by
side, padded with zeros to S = SLOT channels, which may be a slot of a longer row. A program works on one block of steps
(of queries, or of keys) of PACK heads of one sample of one encoder; programs are numbered by block, encoder, heads and
sample, the first fastest. A program whose block lies past its encoder's length has nothing to do: such steps are
neither written nor read. `dmd.kernels.attention.triton_launch` launches the kernels.

A tile of scores has BLOCK_M rows, which are the query steps of one head after those of another, and BLOCK_N keys. Its
PACK heads lie side by side among the WIDTH channels of queries, keys and values, which begin at a multiple of ALIGN, so
that a thread loads several at once, and may be other heads' before and behind. A row of queries, outputs or gradients
is 0 in the channels of other heads than its own. So one product with the keys gives the scores of all heads, and the
gradients of all heads' keys and values are sums over all rows. What a row of a product has in the channels of other
heads is not stored. The padding belongs to the last head: all that is read is 0 there, and so is what is written.
"""

import triton
import triton.language as tl

from dmd.kernels.common.triton_products import product
from dmd.kernels.common.triton_rows import ENDS, KEY_WORDS, draw_keep_mask, load_slots, place_rows

SHAPE_COLUMNS = tl.constexpr(3)
"""Columns of `shape`: query length, key length, dropout's threshold."""
HIDDEN = tl.constexpr(-1e30)
"""Score of a key that a query does not see."""


@triton.jit
def _weights(
    q,  # [BLOCK_M, WIDTH]
    k,  # [BLOCK_N, WIDTH]
    row,  # [BLOCK_M], query steps
    col,  # [BLOCK_N], key steps
    len_q,  # query length of the encoder
    len_k,  # its key length
    begin,  # first unpadded key of the sample
    end,  # end of its unpadded keys
    log_sum,  # [BLOCK_M], log-sum (base 2) of each row
    scale,  # of scores (base 2)
    PRECISION: tl.constexpr,  # of float32 products
):
    """Softmax weights of a tile [BLOCK_M, BLOCK_N], 0 where hidden."""
    score = product(q, tl.trans(k), PRECISION=PRECISION) * scale
    seen = _seen(row, col, len_q, len_k, begin, end) & (row[:, None] < len_q)
    return tl.where(seen, tl.exp2(score - log_sum[:, None]), 0.0)


@triton.jit
def _seen(
    row,  # [BLOCK_M], query steps
    col,  # [BLOCK_N], key steps
    len_q,  # query length of the encoder
    len_k,  # its key length
    begin,  # first unpadded key of the sample
    end,  # end of its unpadded keys
):
    """Which keys of a tile its queries see [BLOCK_M, BLOCK_N]: offset causal, and unpadded."""
    span = tl.abs(len_q - len_k)
    return (col[None, :] <= row[:, None] + span) & (col[None, :] >= begin) & (col[None, :] < end)


@triton.jit
def _load_range(
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    e,  # number of the encoder
    b,  # number of the sample
    batch,  # B
    len_k,  # key length of the encoder
    RANGED: tl.constexpr,  # whether there are ranges
):
    """First unpadded key of a sample, and the end of its unpadded keys."""
    begin = 0
    end = len_k
    if RANGED:
        begin = tl.maximum(tl.load(ranges + ENDS * (e * batch + b)), 0)
        end = tl.minimum(tl.load(ranges + ENDS * (e * batch + b) + 1), len_k)
    return begin, end


@triton.jit
def _locate_program(
    ENCODERS: tl.constexpr,  # E
    BLOCKS: tl.constexpr,  # of an encoder
    HEADS: tl.constexpr,  # H
    PACK: tl.constexpr,  # heads of a tile
):
    """What a program works on: encoder, block, sample, first head."""
    GROUPS: tl.constexpr = HEADS // PACK
    pid = tl.program_id(0)
    group = pid // (BLOCKS * ENCODERS)
    return pid // BLOCKS % ENCODERS, pid % BLOCKS, group // GROUPS, group % GROUPS * PACK


@triton.jit
def _load_shape(
    shape,  # [E, 3], int32
    e,  # number of the encoder
):
    """An encoder's query length, key length, and rate of dropout in 1/65536."""
    at = shape + SHAPE_COLUMNS * e
    return tl.load(at), tl.load(at + 1), tl.load(at + 2)


@triton.jit
def _load_key(
    keys,  # [E, B, 2], int32
    e,  # number of the encoder
    b,  # number of the sample
    batch,  # B
):
    """Both words of a sample's dropout key."""
    at = keys + KEY_WORDS * (e * batch + b)
    return tl.load(at), tl.load(at + 1)


@triton.jit
def _first_row(
    len_q,  # query length of the encoder
    LAST: tl.constexpr,  # queries are of the last step alone
):
    """The step of the first query."""
    first = 0
    if LAST:
        first = len_q - 1
    return first


@triton.jit
def _places(
    e,  # number of the encoder
    b,  # number of the sample
    head,  # [BLOCK_M], heads of rows
    local,  # [BLOCK_M], steps of rows in the tensor
    batch,  # B
    rows,  # Tq
    HEADS: tl.constexpr,  # H
):
    """Places of rows in a tensor [E, B * H, Tq]."""
    return tl.cast(e, tl.int64) * (batch * HEADS * rows) + (b * HEADS + head) * rows + local


@triton.jit
def _window(
    h,  # first head of the tile
    HEAD: tl.constexpr,  # h, channels of a head
    ALIGN: tl.constexpr,  # what the first channel is a multiple of
    WIDTH: tl.constexpr,  # channels of the tile
):
    """Channels of a tile [WIDTH], from before its first head on."""
    return h * HEAD // ALIGN * ALIGN + tl.arange(0, WIDTH)


@triton.jit
def _belong(
    channel,  # [WIDTH]
    head,  # [M], first of some heads
    COUNT: tl.constexpr,  # how many they are
    HEADS: tl.constexpr,  # H
    HEAD: tl.constexpr,  # h, channels of a head
    SLOT: tl.constexpr,  # S
):
    """Which channels belong to heads [M, WIDTH]; the padding belongs to the last head."""
    end = tl.where(head + COUNT == HEADS, SLOT, (head + COUNT) * HEAD)
    return (channel[None, :] >= (head * HEAD)[:, None]) & (channel[None, :] < end[:, None])


@triton.jit
def _kept(
    row,  # [BLOCK_M], query steps
    col,  # [BLOCK_N], key steps
    head,  # [BLOCK_M], heads of rows
    len_q,  # query length of the encoder
    len_k,  # its key length
    key_low,  # low word of the dropout's key
    key_high,  # its high word
    threshold,  # the rate in 1/65536
):
    """Which weights of a tile dropout keeps [BLOCK_M, BLOCK_N]: a word of the hash decides about two keys."""
    words = (len_k + 1) // 2
    word = ((head * len_q + row) * words)[:, None] + col[None, :] // 2
    return draw_keep_mask(word, (col % 2)[None, :], key_low, key_high, threshold)


@triton.jit
def forward(
    q_ptr,  # [E, B, Tq, S], float32 or bfloat16
    k_ptr,  # [E, B, Tk, S]
    v_ptr,  # [E, B, Tk, S]
    o_ptr,  # [E, B, Tq, S], output, written
    log_sums_ptr,  # [E, B * H, Tq], float32, log-sum (base 2) of each row, written
    shape,  # [E, 3], int32: query length, key length, rate of dropout in 1/65536
    keys,  # [E, B, 2], int32, the dropout's keys
    scales,  # [E], float32, what dropout multiplies the kept weights by
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    batch,  # B
    rows,  # Tq
    key_steps,  # Tk
    scale,  # of scores (base 2): log2(e) / sqrt(h)
    ENCODERS: tl.constexpr,  # E
    BLOCKS: tl.constexpr,  # of an encoder, a program each
    HEADS: tl.constexpr,  # H
    LAST: tl.constexpr,  # queries are of the last step alone, Tq = 1
    DROP: tl.constexpr,  # whether weights are dropped
    RANGED: tl.constexpr,  # whether there are ranges
    HEAD: tl.constexpr,  # h, channels of a head
    SLOT: tl.constexpr,  # S, of which H * h are not padding; channels of the rows of outputs and their gradients, too
    Q_ROW: tl.constexpr,  # channels of a row that the query is a slot of
    K_ROW: tl.constexpr,  # of those of key and value
    PACK: tl.constexpr,  # heads of a tile, divides H
    WIDTH: tl.constexpr,  # channels of a tile, a power of two
    ALIGN: tl.constexpr,  # what the first of them is a multiple of
    BLOCK_M: tl.constexpr,  # rows of a tile: query steps of PACK heads
    BLOCK_N: tl.constexpr,  # keys of a tile
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Attention output and each row's log-sum (base 2)."""
    e, block, b, h = _locate_program(ENCODERS=ENCODERS, BLOCKS=BLOCKS, HEADS=HEADS, PACK=PACK)
    len_q, len_k, threshold = _load_shape(shape, e)
    key_low, key_high = _load_key(keys, e, b, batch)
    first = _first_row(len_q, LAST=LAST)
    STEPS: tl.constexpr = BLOCK_M // PACK
    if first + block * STEPS >= len_q:
        return
    member = tl.arange(0, BLOCK_M) // STEPS
    local = block * STEPS + tl.arange(0, BLOCK_M) % STEPS
    row = first + local
    channel = _window(h, HEAD=HEAD, ALIGN=ALIGN, WIDTH=WIDTH)
    own = _belong(channel, h + member, COUNT=1, HEADS=HEADS, HEAD=HEAD, SLOT=SLOT)
    q_at = place_rows(e, b, local, batch, rows, ROW=Q_ROW)
    q = tl.where(own, load_slots(q_ptr, q_at, row < len_q, channel, SLOT=SLOT), 0.0)
    top = tl.full([BLOCK_M], HIDDEN, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    range_begin, range_end = _load_range(ranges, e, b, batch, len_k, RANGED=RANGED)
    end = tl.minimum(range_end, first + (block + 1) * STEPS + tl.abs(len_q - len_k))
    for begin in range(range_begin // BLOCK_N * BLOCK_N, end, BLOCK_N):
        col = begin + tl.arange(0, BLOCK_N)
        k_at = place_rows(e, b, col, batch, key_steps, ROW=K_ROW)
        k = load_slots(k_ptr, k_at, col < len_k, channel, SLOT=SLOT)
        v = load_slots(v_ptr, k_at, col < len_k, channel, SLOT=SLOT)
        score = product(q, tl.trans(k), PRECISION=PRECISION) * scale
        seen = _seen(row, col, len_q, len_k, range_begin, range_end)
        score = tl.where(seen, score, HIDDEN)
        new_top = tl.maximum(top, tl.max(score, 1))
        weights = tl.where(seen, tl.exp2(score - new_top[:, None]), 0.0)
        decay = tl.exp2(top - new_top)
        total = total * decay + tl.sum(weights, 1)
        if DROP:
            keep_mask = _kept(row, col, h + member, len_q, len_k, key_low, key_high, threshold)
            weights = tl.where(keep_mask, weights, 0.0)
        mixed = mixed * decay[:, None] + product(weights.to(v.dtype), v, PRECISION=PRECISION)
        top = new_top
    mixed = mixed / tl.where(total > 0, total, 1.0)[:, None] * tl.load(scales + e)
    o_at = place_rows(e, b, local, batch, rows, ROW=SLOT)
    mask = own & (row < len_q)[:, None]
    tl.store(o_ptr + o_at[:, None] + channel[None, :], mixed.to(o_ptr.dtype.element_ty), mask)
    log_sum = top + tl.log2(tl.where(total > 0, total, 1.0))
    tl.store(log_sums_ptr + _places(e, b, h + member, local, batch, rows, HEADS=HEADS), log_sum, row < len_q)


@triton.jit
def backward_query(
    q_ptr,  # [E, B, Tq, S], float32 or bfloat16
    k_ptr,  # [E, B, Tk, S]
    v_ptr,  # [E, B, Tk, S]
    o_ptr,  # [E, B, Tq, S], output
    go_ptr,  # [E, B, Tq, S], gradient of the output
    log_sums_ptr,  # [E, B * H, Tq], float32, log-sum (base 2) of each row
    gq_ptr,  # [E, B, Tq, S], gradient of the query, written
    shape,  # [E, 3], int32: query length, key length, rate of dropout in 1/65536
    keys,  # [E, B, 2], int32, the dropout's keys
    scales,  # [E], float32, what dropout multiplies the kept weights by
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    batch,  # B
    rows,  # Tq
    key_steps,  # Tk
    scale,  # of scores (base 2): log2(e) / sqrt(h)
    factor,  # 1 / sqrt(h)
    ENCODERS: tl.constexpr,  # E
    BLOCKS: tl.constexpr,  # of an encoder, a program each
    HEADS: tl.constexpr,  # H
    LAST: tl.constexpr,  # queries are of the last step alone, Tq = 1
    DROP: tl.constexpr,  # whether weights are dropped
    RANGED: tl.constexpr,  # whether there are ranges
    HEAD: tl.constexpr,  # h, channels of a head
    SLOT: tl.constexpr,  # S, of which H * h are not padding; channels of the rows of outputs and their gradients, too
    Q_ROW: tl.constexpr,  # channels of a row that the query is a slot of
    K_ROW: tl.constexpr,  # of those of key and value
    G_ROW: tl.constexpr,  # of those of the gradients that are written
    PACK: tl.constexpr,  # heads of a tile, divides H
    WIDTH: tl.constexpr,  # channels of a tile, a power of two
    ALIGN: tl.constexpr,  # what the first of them is a multiple of
    BLOCK_M: tl.constexpr,  # rows of a tile: query steps of PACK heads
    BLOCK_N: tl.constexpr,  # keys of a tile
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Gradient of the query, over the keys that each row sees."""
    e, block, b, h = _locate_program(ENCODERS=ENCODERS, BLOCKS=BLOCKS, HEADS=HEADS, PACK=PACK)
    len_q, len_k, threshold = _load_shape(shape, e)
    key_low, key_high = _load_key(keys, e, b, batch)
    first = _first_row(len_q, LAST=LAST)
    STEPS: tl.constexpr = BLOCK_M // PACK
    if first + block * STEPS >= len_q:
        return
    keep_scale = tl.load(scales + e)
    member = tl.arange(0, BLOCK_M) // STEPS
    local = block * STEPS + tl.arange(0, BLOCK_M) % STEPS
    row = first + local
    channel = _window(h, HEAD=HEAD, ALIGN=ALIGN, WIDTH=WIDTH)
    own = _belong(channel, h + member, COUNT=1, HEADS=HEADS, HEAD=HEAD, SLOT=SLOT)
    q_at = place_rows(e, b, local, batch, rows, ROW=Q_ROW)
    o_at = place_rows(e, b, local, batch, rows, ROW=SLOT)
    q = tl.where(own, load_slots(q_ptr, q_at, row < len_q, channel, SLOT=SLOT), 0.0)
    go = tl.where(own, load_slots(go_ptr, o_at, row < len_q, channel, SLOT=SLOT), 0.0)
    out = load_slots(o_ptr, o_at, row < len_q, channel, SLOT=SLOT)
    delta = tl.sum(go.to(tl.float32) * out.to(tl.float32), 1)
    log_sum = tl.load(log_sums_ptr + _places(e, b, h + member, local, batch, rows, HEADS=HEADS), row < len_q, 0.0)
    gq = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    range_begin, range_end = _load_range(ranges, e, b, batch, len_k, RANGED=RANGED)
    end = tl.minimum(range_end, first + (block + 1) * STEPS + tl.abs(len_q - len_k))
    for begin in range(range_begin // BLOCK_N * BLOCK_N, end, BLOCK_N):
        col = begin + tl.arange(0, BLOCK_N)
        k_at = place_rows(e, b, col, batch, key_steps, ROW=K_ROW)
        k = load_slots(k_ptr, k_at, col < len_k, channel, SLOT=SLOT)
        v = load_slots(v_ptr, k_at, col < len_k, channel, SLOT=SLOT)
        weights = _weights(q, k, row, col, len_q, len_k, range_begin, range_end, log_sum, scale, PRECISION=PRECISION)
        grad = product(go, tl.trans(v), PRECISION=PRECISION) * keep_scale
        if DROP:
            keep_mask = _kept(row, col, h + member, len_q, len_k, key_low, key_high, threshold)
            grad = tl.where(keep_mask, grad, 0.0)
        grad = weights * (grad - delta[:, None])
        gq += product(grad.to(k.dtype), k, PRECISION=PRECISION)
    mask = own & (row < len_q)[:, None]
    g_at = place_rows(e, b, local, batch, rows, ROW=G_ROW)
    tl.store(gq_ptr + g_at[:, None] + channel[None, :], (gq * factor).to(gq_ptr.dtype.element_ty), mask)


@triton.jit
def backward_key(
    q_ptr,  # [E, B, Tq, S], float32 or bfloat16
    k_ptr,  # [E, B, Tk, S]
    v_ptr,  # [E, B, Tk, S]
    o_ptr,  # [E, B, Tq, S], output
    go_ptr,  # [E, B, Tq, S], gradient of the output
    log_sums_ptr,  # [E, B * H, Tq], float32, log-sum (base 2) of each row
    gk_ptr,  # [E, B, Tk, S], gradient of the key, written
    gv_ptr,  # [E, B, Tk, S], gradient of the value, written
    shape,  # [E, 3], int32: query length, key length, rate of dropout in 1/65536
    keys,  # [E, B, 2], int32, the dropout's keys
    scales,  # [E], float32, what dropout multiplies the kept weights by
    ranges,  # [E, B, 2], int32, unpadded keys (begin, end) of each sample
    batch,  # B
    rows,  # Tq
    key_steps,  # Tk
    scale,  # of scores (base 2): log2(e) / sqrt(h)
    factor,  # 1 / sqrt(h)
    ENCODERS: tl.constexpr,  # E
    BLOCKS: tl.constexpr,  # of an encoder, a program each
    HEADS: tl.constexpr,  # H
    LAST: tl.constexpr,  # queries are of the last step alone, Tq = 1
    DROP: tl.constexpr,  # whether weights are dropped
    RANGED: tl.constexpr,  # whether there are ranges
    HEAD: tl.constexpr,  # h, channels of a head
    SLOT: tl.constexpr,  # S, of which H * h are not padding; channels of the rows of outputs and their gradients, too
    Q_ROW: tl.constexpr,  # channels of a row that the query is a slot of
    K_ROW: tl.constexpr,  # of those of key and value
    G_ROW: tl.constexpr,  # of those of the gradients that are written
    PACK: tl.constexpr,  # heads of a tile, divides H
    WIDTH: tl.constexpr,  # channels of a tile, a power of two
    ALIGN: tl.constexpr,  # what the first of them is a multiple of
    BLOCK_M: tl.constexpr,  # rows of a tile: query steps of PACK heads
    BLOCK_N: tl.constexpr,  # keys of a tile
    PRECISION: tl.constexpr,  # of float32 products, Triton's `input_precision`
):
    """Gradients of key and value, over the rows that see them."""
    e, block, b, h = _locate_program(ENCODERS=ENCODERS, BLOCKS=BLOCKS, HEADS=HEADS, PACK=PACK)
    len_q, len_k, threshold = _load_shape(shape, e)
    key_low, key_high = _load_key(keys, e, b, batch)
    first = _first_row(len_q, LAST=LAST)
    if block * BLOCK_N >= len_k:
        return
    keep_scale = tl.load(scales + e)
    col = block * BLOCK_N + tl.arange(0, BLOCK_N)
    channel = _window(h, HEAD=HEAD, ALIGN=ALIGN, WIDTH=WIDTH)
    k_at = place_rows(e, b, col, batch, key_steps, ROW=K_ROW)
    k = load_slots(k_ptr, k_at, col < len_k, channel, SLOT=SLOT)
    v = load_slots(v_ptr, k_at, col < len_k, channel, SLOT=SLOT)
    gk = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    gv = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    range_begin, range_end = _load_range(ranges, e, b, batch, len_k, RANGED=RANGED)
    STEPS: tl.constexpr = BLOCK_M // PACK
    member = tl.arange(0, BLOCK_M) // STEPS
    own = _belong(channel, h + member, COUNT=1, HEADS=HEADS, HEAD=HEAD, SLOT=SLOT)
    start = tl.maximum(0, block * BLOCK_N - tl.abs(len_q - len_k) - first) // STEPS * STEPS
    for begin in range(start, len_q - first, STEPS):
        local = begin + tl.arange(0, BLOCK_M) % STEPS
        row = first + local
        q_at = place_rows(e, b, local, batch, rows, ROW=Q_ROW)
        o_at = place_rows(e, b, local, batch, rows, ROW=SLOT)
        q = tl.where(own, load_slots(q_ptr, q_at, row < len_q, channel, SLOT=SLOT), 0.0)
        go = tl.where(own, load_slots(go_ptr, o_at, row < len_q, channel, SLOT=SLOT), 0.0)
        out = load_slots(o_ptr, o_at, row < len_q, channel, SLOT=SLOT)
        delta = tl.sum(go.to(tl.float32) * out.to(tl.float32), 1)
        log_sum = tl.load(log_sums_ptr + _places(e, b, h + member, local, batch, rows, HEADS=HEADS), row < len_q, 0.0)
        weights = _weights(q, k, row, col, len_q, len_k, range_begin, range_end, log_sum, scale, PRECISION=PRECISION)
        grad = product(go, tl.trans(v), PRECISION=PRECISION) * keep_scale
        dropped = weights * keep_scale
        if DROP:
            keep_mask = _kept(row, col, h + member, len_q, len_k, key_low, key_high, threshold)
            grad = tl.where(keep_mask, grad, 0.0)
            dropped = tl.where(keep_mask, dropped, 0.0)
        gv += product(tl.trans(dropped).to(go.dtype), go, PRECISION=PRECISION)
        grad = weights * (grad - delta[:, None])
        gk += product(tl.trans(grad).to(q.dtype), q, PRECISION=PRECISION)
    heads = h + tl.zeros([1], tl.int32)
    own = _belong(channel, heads, COUNT=PACK, HEADS=HEADS, HEAD=HEAD, SLOT=SLOT) & (col < len_k)[:, None]
    g_at = place_rows(e, b, col, batch, key_steps, ROW=G_ROW)[:, None] + channel[None, :]
    tl.store(gk_ptr + g_at, (gk * factor).to(gk_ptr.dtype.element_ty), own)
    tl.store(gv_ptr + g_at, gv.to(gv_ptr.dtype.element_ty), own)
