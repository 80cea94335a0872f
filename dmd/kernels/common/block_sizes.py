"""Block sizes of the Triton kernels over an encoder's channels and of the attention: one rule for every card.

What was measured on a card takes their place there (`measured_sizes`). The rule's were found by compiling
(`benchmarks.compile_kernels`): every kernel fits the shared memory of the least card that is supported, and spills
little or nothing there. Widths are padded to powers of two.
"""

from dmd.kernels.common.cards import SHARED_MEMORY

LEAST_SHARED_MEMORY = min(SHARED_MEMORY.values())
"""Bytes that a block may use on the cards that give least (compute capability 8.6, 8.9 and 12.0)."""
MAX_WIDTH = 256
"""Most channels of an encoder that a program of the Triton kernels holds, on every card."""
MAX_HEAD = 256
"""Most channels of an attention head that they hold."""
MIN_SIDE = 16
"""Smallest side of a Triton matrix product."""
SLOT_CHANNELS = 8
"""Rows in memory are padded to a multiple of so many channels: 16 bytes of 16 bits each (`dmd.kernels.common.rows`)."""
HALF_SIZES = {64: (64, 64, 8), 128: (32, 64, 8), 256: (32, 32, 8)}
"""{width: (M, CHUNK, warps)} of kernels over rows with products of 16 bits."""
HALF_SIZES_OF = {
    ("residual_mlp", 64): (32, 64, 8),
    ("residual_mlp_backward", 64): (32, 32, 4),
    ("residual_mlp_backward", 256): (16, 32, 8),
}
"""Of kernels that would take so many registers that few programs run at a time, or spill (docs/lab-notes.md)."""
SHORT = 64
"""Steps of the longest sequence of an attention that works in the smallest tiles."""
SHORT_ROW = 128
"""Most bytes of a row of such a tile: what a warp holds without spills."""


def num_blocks(count: int, size: int) -> int:
    """Blocks of `size` that hold `count`; `triton.cdiv` takes ten times as long."""
    return -(-count // size)


def padded(channels: int) -> int:
    """Channels of a program: a power of two that a matrix product takes."""
    return max(MIN_SIDE, 1 << (channels - 1).bit_length())


def slot(channels: int) -> int:
    """Channels in memory, padded to a multiple of `SLOT_CHANNELS`."""
    return num_blocks(channels, SLOT_CHANNELS) * SLOT_CHANNELS


def head_window(head: int, *, heads: int, pack: int) -> tuple[int, int]:
    """(WIDTH, ALIGN): channels of a tile over `pack` heads, and what the first of them is a multiple of.

    A tile begins at or before its first head, as far to the front as lets a thread read most at once, and has room for
    the padding of the slot behind the last head. Where that takes more than the heads' own channels padded, twice as
    many do.

    Args:
        head: channels of a head.
        heads: how many there are.
    """
    own, end = pack * head, slot(heads * head)
    firsts = range(0, heads * head, own)
    for width in (padded(own), 2 * padded(own)):
        for align in (SLOT_CHANNELS >> shift for shift in range(SLOT_CHANNELS.bit_length())):
            begins = [first // align * align for first in firsts]
            reach = max(first + own - begin for first, begin in zip(firsts, begins, strict=True))
            if max(reach, end - begins[-1]) <= width:
                return width, align
    raise AssertionError((head, heads, pack))


def row_sizes(kernel: str, dim: int, *, half: bool) -> dict[str, int]:
    """Constants of a kernel over rows of an encoder: WIDTH, M rows and CHUNK columns at a time; warps and stages.

    Args:
        kernel: its name. `weight_shares` holds no weights, and products of many rows.
        dim: channels of the encoder.
        half: products of 16 bits; otherwise float32.
    """
    width, warps = padded(dim), 8
    if kernel == "weight_shares":
        warps = 4 if width <= 128 else 8
        rows, chunk, stages = (64 if width <= 128 else 32, 64, 3) if half else (32, 32, 2)
    elif half:
        place = max(64, width)
        rows, chunk, warps = HALF_SIZES_OF.get((kernel, place), HALF_SIZES[place])
        stages = 2
    else:
        rows, chunk, stages = (32, 32, 2) if width <= 128 else (16, 16, 1)
    return {"WIDTH": width, "M": rows, "CHUNK": chunk, "num_warps": warps, "num_stages": stages}


def attention_sizes(head: int, rows: int, keys: int, *, heads: int, half: bool) -> dict[str, int]:
    """Constants of the attention's kernels: PACK heads of a tile, in WIDTH channels from a multiple of ALIGN on;
    BLOCK_M rows (query steps of those heads) by BLOCK_N keys of a tile; warps and stages.

    Args:
        head: channels of a head.
        rows: steps of the longest query sequence; `keys`: of the longest key sequence.
        heads: how many heads there are.
        half: products of 16 bits; otherwise float32.
    """
    width, align = head_window(head, heads=heads, pack=1)
    if max(rows, keys) <= SHORT and width * (2 if half else 4) <= SHORT_ROW:
        return _short_attention_sizes(head, rows, heads=heads)
    if half:
        side, warps, stages = {64: (64, 4, 3), 128: (32, 4, 2), 256: (32, 8, 1)}[max(64, width)]
    elif width == MIN_SIDE:
        side, warps, stages = 64, 8, 3
    else:
        side, warps, stages = {64: (32, 4, 2), 128: (32, 8, 1), 256: (16, 8, 1)}[max(64, width)]
    tile = min(side, padded(rows)), min(side, padded(keys))
    if min(tile) < side:
        warps = 4
    blocks = {"BLOCK_M": tile[0], "BLOCK_N": tile[1]}
    return {"PACK": 1, "WIDTH": width, "ALIGN": align, **blocks, "num_warps": warps, "num_stages": stages}


def _short_attention_sizes(head: int, rows: int, *, heads: int) -> dict[str, int]:
    """Of short sequences: of the smallest tiles the causal mask hides least, and no two warps compute the same.

    Two heads of up to 8 channels share the 16 that a product takes. A tile has 16 steps of each head and a warp for
    them, or 8 steps of two heads where those are enough.
    """
    pack = 2 if heads % 2 == 0 and head_window(head, heads=heads, pack=2)[0] == MIN_SIDE else 1
    width, align = head_window(head, heads=heads, pack=pack)
    steps = max(MIN_SIDE // pack, min(MIN_SIDE, 1 << (rows - 1).bit_length()))
    return {
        "PACK": pack,
        "WIDTH": width,
        "ALIGN": align,
        "BLOCK_M": pack * steps,
        "BLOCK_N": MIN_SIDE,
        "num_warps": pack * steps // MIN_SIDE,
        "num_stages": 1,
    }
