"""What Triton kernels over rows share: dropout's hash, the rows of encoders of different lengths, layer norm.

A row is a (sample, step) of one encoder of E. `dmd.kernels.common.rows` says how rows lie in memory. `table` [E, 5]
int32 describes the encoders of a stack: query length, key length, place in its group of PyTorch's encoders, and the
lengths to which that group pads queries and keys. The last three number the elements of dropout as PyTorch does.
"""

import triton
import triton.language as tl

QUERIES = tl.constexpr(0)
"""SIDE of rows that are steps of queries; their length is this column of `table`."""
KEYS = tl.constexpr(1)
"""SIDE of rows that are steps of keys, and the column of their length."""
PLACE = tl.constexpr(2)
"""Column of an encoder's place in its group."""
PADDED = tl.constexpr(3)
"""Column of the length to which its group pads queries; the next column is that of keys."""
COLUMNS = tl.constexpr(5)
"""Columns of `table`."""
KEY_WORDS = tl.constexpr(2)
"""Words of a dropout key: low, high."""
ENDS = tl.constexpr(2)
"""Numbers of a range: begin, end."""
EPSILON = tl.constexpr(1e-5)
"""Of a layer norm."""


@triton.jit
def draw_keep_mask(
    word,  # int32, numbers of pairs of elements
    odd,  # which of its pair an element is, 0 or 1
    key_low,  # int32, low word of the dropout's key
    key_high,  # int32, its high word
    threshold,  # the rate in 1/65536
):
    """Whether dropout keeps elements: the hash of `dmd.kernels.dropout.rng`, in unsigned arithmetic."""
    x = (word + key_low).to(tl.uint32, bitcast=True)
    high = key_high.to(tl.uint32, bitcast=True)
    x = ((x ^ (x >> 16)) * 0x7FEB352D) ^ high
    x = ((x ^ (x >> 15)) * 0x846CA68B) ^ high
    x = x ^ (x >> 16)
    half = tl.where(odd == 1, x >> 16, x & 0xFFFF)
    return (half ^ 0x8000).to(tl.int32) >= threshold


@triton.jit
def place_rows(
    e,  # number of the encoder
    sample,  # [M], of rows
    step,  # [M], of rows, in the tensor
    batch,  # samples of the tensor
    steps,  # steps of the tensor
    ROW: tl.constexpr,  # channels of its rows
):
    """Where rows of a tensor [E, batch, steps, ROW] begin, in elements [M]."""
    return tl.cast(e, tl.int64) * (batch * steps * ROW) + (sample * steps + step) * ROW


@triton.jit
def load_slots(
    ptr,  # [E, B, T, ...]
    at,  # [M], places of rows
    inside,  # [M], which rows there are
    channel,  # [N], channels of a slot
    SLOT: tl.constexpr,  # its channels in memory
):
    """Channels of rows [M, N], 0 past the slot and where no row is."""
    return tl.load(ptr + at[:, None] + channel[None, :], inside[:, None] & (channel < SLOT)[None, :], 0.0)


@triton.jit
def store_slots(
    ptr,  # [E, B, T, ...], written
    values,  # [M, N], 0 in the padding of the slot
    at,  # [M], places of rows
    inside,  # [M], which rows there are
    channel,  # [N], channels of a slot
    SLOT: tl.constexpr,  # its channels in memory
):
    """Store channels of rows, in the type of the memory."""
    mask = inside[:, None] & (channel < SLOT)[None, :]
    tl.store(ptr + at[:, None] + channel[None, :], values.to(ptr.dtype.element_ty), mask)


@triton.jit
def count_rows(
    table,  # [E, 5], int32
    e,  # number of the encoder
    batch,  # samples
    SIDE: tl.constexpr,  # QUERIES or KEYS
    LAST: tl.constexpr,  # each sample has one row, that of its last step
):
    """Rows of an encoder: its steps times the samples."""
    count = batch
    if not LAST:
        count = batch * tl.load(table + COLUMNS * e + SIDE)
    return count


@triton.jit
def locate_rows(
    row,  # [M], numbers of rows
    table,  # [E, 5], int32
    e,  # number of the encoder
    SIDE: tl.constexpr,  # QUERIES or KEYS
    LAST: tl.constexpr,  # each sample has one row, that of its last step
):
    """Sample of rows, and step in a tensor that holds just these rows, [M] each."""
    length = 1
    if not LAST:
        length = tl.load(table + COLUMNS * e + SIDE)
    return row // length, row % length


@triton.jit
def whole_steps(
    sample,  # [M], of rows
    step,  # [M], of rows, in a tensor that holds just these
    inside,  # [M], which rows there are
    table,  # [E, 5], int32
    ranges,  # [E, batch, 2], int32, unpadded keys (begin, end) of each sample
    e,  # number of the encoder
    batch,  # samples
    SIDE: tl.constexpr,  # QUERIES or KEYS
    LAST: tl.constexpr,  # each sample has one row, that of its last step
    RANGED: tl.constexpr,  # whether there are ranges
):
    """Step of rows in the whole sequence, [M]: with LAST the last one, with RANGED the last unpadded one."""
    whole = step
    if LAST:
        if RANGED:
            end = tl.load(ranges + ENDS * (e * batch + sample) + 1, inside, 1)
            whole = tl.maximum(end - 1, 0)
        else:
            whole = step + (tl.load(table + COLUMNS * e + SIDE) - 1)
    return whole


@triton.jit
def keep_factor(
    keys,  # [E, B, 2], int32, the dropout's keys
    table,  # [E, 5], int32
    e,  # number of the encoder
    sample,  # [M], of rows
    step,  # [M], of rows
    col,  # [N], channels
    batch,  # samples
    inside,  # [M], which rows there are
    SIDE: tl.constexpr,  # QUERIES or KEYS
    LAST: tl.constexpr,  # each sample has one row, that of its last step
    COLS: tl.constexpr,  # channels of the tensor that is dropped from
    THRESHOLD: tl.constexpr,  # the rate in 1/65536
    SCALE: tl.constexpr,  # what kept elements are multiplied by
):
    """What dropout multiplies elements by, [M, N]: 0 or SCALE."""
    at = keys + KEY_WORDS * (e * batch + sample)
    low = tl.load(at, inside, 0)
    high = tl.load(at + 1, inside, 0)
    place = tl.load(table + COLUMNS * e + PLACE)
    steps = 1
    if not LAST:
        steps = tl.load(table + COLUMNS * e + PADDED + SIDE)
    index = step[:, None] * COLS + col[None, :]
    word = place * ((steps * COLS + 1) // 2) + index // 2
    return tl.where(draw_keep_mask(word, index % 2, low[:, None], high[:, None], THRESHOLD), SCALE, 0.0)


@triton.jit
def normalised(
    x,  # [M, WIDTH], 0 past DIM
    channel,  # [WIDTH]
    DIM: tl.constexpr,  # channels
):
    """Rows of x with mean 0 and variance 1 over DIM channels [M, WIDTH] (0 in the rest); 1 / deviation [M]."""
    mean = tl.sum(x, 1) * (1.0 / DIM)
    deviation = tl.where(channel[None, :] < DIM, x - mean[:, None], 0.0)
    # Rounded to the nearest. Triton's own roots and quotients are approximate, and a row of padding has the same error
    # in every layer norm that it passes: on an H100, 2.2e-6 of a gradient after two layers.
    inverse = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(deviation * deviation, 1) * (1.0 / DIM) + EPSILON))
    return deviation * inverse[:, None], inverse


@triton.jit
def normalised_backward(
    grad,  # [M, WIDTH], gradient of the normalised rows, 0 past DIM
    normed,  # [M, WIDTH], the normalised rows, 0 past DIM
    inverse,  # [M], 1 / deviation
    channel,  # [WIDTH]
    DIM: tl.constexpr,  # channels
):
    """Gradient of x [M, WIDTH], 0 past DIM."""
    mean = tl.where((channel < DIM)[None, :], (tl.sum(grad, 1) * (1.0 / DIM))[:, None], 0.0)
    along = tl.sum(grad * normed, 1) * (1.0 / DIM)
    return inverse[:, None] * (grad - mean - normed * along[:, None])
