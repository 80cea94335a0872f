"""What Triton kernels over rows share: dropout's hash, the rows of encoders of different lengths, layer norm.

`table` [E, 5] int32 describes the encoders of a stack: query length, key length, place in its group of the plain form,
and the lengths to which that group pads queries and keys. The last three number the elements of dropout as the plain
form does.
"""

import triton
import triton.language as tl

COLUMNS = 5


@triton.jit
def keep_mask(word, odd, key_low, key_high, threshold):
    """Whether dropout keeps elements: the hash of `dmd.kernels.dropout.rng`, in unsigned arithmetic."""
    x = (word + key_low).to(tl.uint32, bitcast=True)
    high = key_high.to(tl.uint32, bitcast=True)
    x = ((x ^ (x >> 16)) * 0x7FEB352D) ^ high
    x = ((x ^ (x >> 15)) * 0x846CA68B) ^ high
    x = x ^ (x >> 16)
    half = tl.where(odd == 1, x >> 16, x & 0xFFFF)
    return (half ^ 0x8000).to(tl.int32) >= threshold


@triton.jit
def count_rows(table, e, batch, SIDE: tl.constexpr, LAST: tl.constexpr):
    """Rows of an encoder: its steps (of queries, SIDE 0, or keys, SIDE 1) times the samples."""
    count = batch
    if not LAST:
        count = batch * tl.load(table + 5 * e + SIDE)
    return count


@triton.jit
def locate_rows(row, table, e, SIDE: tl.constexpr, LAST: tl.constexpr):
    """Sample of row numbers, and step in a tensor that holds just these rows."""
    length = 1
    if not LAST:
        length = tl.load(table + 5 * e + SIDE)
    return row // length, row % length


@triton.jit
def whole_steps(
    sample, step, inside, table, ranges, e, batch, SIDE: tl.constexpr, LAST: tl.constexpr, RANGED: tl.constexpr
):
    """Step of rows in the whole sequence: with LAST it is the last one, or with RANGED the sample's last unpadded
    one."""
    whole = step
    if LAST:
        if RANGED:
            end = tl.load(ranges + 2 * (e * batch + sample) + 1, inside, 1)
            whole = tl.maximum(end - 1, 0)
        else:
            whole = step + (tl.load(table + 5 * e + SIDE) - 1)
    return whole


@triton.jit
def keep_factor(
    keys,
    table,
    e,
    sample,
    step,
    col,
    batch,
    inside,
    SIDE: tl.constexpr,
    LAST: tl.constexpr,
    COLS: tl.constexpr,
    GHOST: tl.constexpr,
    THRESHOLD: tl.constexpr,
    SCALE: tl.constexpr,
):
    """What dropout multiplies the elements [rows, col] by: 0 or SCALE; COLS channels, GHOST samples per ghost batch."""
    at = keys + 2 * (e * (batch // GHOST) + sample // GHOST)
    low = tl.load(at, inside, 0)
    high = tl.load(at + 1, inside, 0)
    place = tl.load(table + 5 * e + 2)
    steps = 1
    if not LAST:
        steps = tl.load(table + 5 * e + 3 + SIDE)
    index = ((place * GHOST + sample % GHOST) * steps + step)[:, None] * COLS + col[None, :]
    return tl.where(keep_mask(index // 2, index % 2, low[:, None], high[:, None], THRESHOLD), SCALE, 0.0)


@triton.jit
def normalised(x, channel, DIM: tl.constexpr):
    """Rows of x [M, WIDTH] with mean 0 and variance 1 over the first DIM channels (0 in the rest); 1 / deviation."""
    mean = tl.sum(x, 1) * (1.0 / DIM)
    deviation = tl.where(channel[None, :] < DIM, x - mean[:, None], 0.0)
    # Rounded to the nearest. Triton's own roots and quotients are approximate, and a row of padding has the same error
    # in every layer norm that it passes: on an H100, 2.2e-6 of a gradient behind two layers.
    inverse = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(deviation * deviation, 1) * (1.0 / DIM) + 1e-5))
    return deviation * inverse[:, None], inverse


@triton.jit
def normalised_backward(grad, unit, inverse, DIM: tl.constexpr):
    """Gradient of x, from that of its normalised rows (0 past DIM)."""
    mean = tl.sum(grad, 1) * (1.0 / DIM)
    along = tl.sum(grad * unit, 1) * (1.0 / DIM)
    return inverse[:, None] * (grad - mean[:, None] - unit * along[:, None])
