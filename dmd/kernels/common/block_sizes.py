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


def num_blocks(count: int, size: int) -> int:
    """Blocks of `size` that hold `count`; `triton.cdiv` takes ten times as long."""
    return -(-count // size)


def padded(channels: int) -> int:
    """Channels of a program: a power of two that a matrix product takes."""
    return max(MIN_SIDE, 1 << (channels - 1).bit_length())


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
        rows, chunk, stages = {64: (64, 64, 2), 128: (32, 64, 2), 256: (32, 32, 2)}[max(64, width)]
        rows = 16 if width == 256 and kernel == "residual_mlp_backward" else rows
    else:
        rows, chunk, stages = (32, 32, 2) if width <= 128 else (16, 16, 1)
    return {"WIDTH": width, "M": rows, "CHUNK": chunk, "num_warps": warps, "num_stages": stages}


def attention_sizes(head: int, rows: int, keys: int, *, half: bool) -> dict[str, int]:
    """Constants of the attention's kernels: WIDTH, BLOCK_M rows by BLOCK_N keys of a tile; warps and stages.

    Args:
        head: channels of a head.
        rows: steps of the longest query sequence; `keys`: of the longest key sequence.
        half: products of 16 bits; otherwise float32.
    """
    width = padded(head)
    if half:
        side, warps, stages = {64: (64, 4, 3), 128: (32, 4, 2), 256: (32, 8, 1)}[max(64, width)]
    elif width == MIN_SIDE:
        side, warps, stages = 64, 8, 3
    else:
        side, warps, stages = {64: (32, 4, 2), 128: (32, 8, 1), 256: (16, 8, 1)}[max(64, width)]
    tile = min(side, padded(rows)), min(side, padded(keys))
    if min(tile) < side:
        warps = 4
    return {"WIDTH": width, "BLOCK_M": tile[0], "BLOCK_N": tile[1], "num_warps": warps, "num_stages": stages}
