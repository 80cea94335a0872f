"""Block sizes of the Triton kernels over an encoder's channels and of the attention: one rule for every card.

They were found by compiling (`benchmarks.compile_kernels`): every kernel fits the shared memory of the least card that
is supported, and spills little or nothing there. Widths are padded to powers of two.
"""

LEAST_SHARED_MEMORY = 99 * 1024
"""Bytes that a block may use on the cards that give least (compute capability 8.6, 8.9 and 12.0)."""
MAX_WIDTH = 256
"""Most channels of an encoder, and of an attention head, that the Triton kernels hold."""
MIN_SIDE = 16
"""Smallest side of a Triton matrix product."""


def padded(channels: int) -> int:
    """Channels of a program: a power of two that a matrix product takes."""
    return max(MIN_SIDE, 1 << (channels - 1).bit_length())


def row_sizes(kernel: str, dim: int, *, half: bool) -> dict[str, int]:
    """Constants of a kernel over rows of an encoder: WIDTH, M rows and CHUNK columns at a time; warps and stages.

    Args:
        kernel: its name. `mlp_weights` holds weights and gradients of hidden units beside a block's rows.
        dim: channels of the encoder.
        half: products of 16 bits; otherwise float32.
    """
    width = padded(dim)
    if half:
        rows, chunk, stages = {64: (64, 64, 2), 128: (32, 64, 2), 256: (32, 32, 2)}[max(64, width)]
        rows = 16 if width == 256 and kernel == "mlp_weights" else rows
    else:
        rows, chunk, stages = (32, 32, 2) if width <= 128 else (16, 16, 1)
        stages = 1 if kernel == "mlp_weights" else stages
    return {"WIDTH": width, "M": rows, "CHUNK": chunk, "num_warps": 8, "num_stages": stages}


def attention_sizes(kernel: str, head: int, rows: int, keys: int, *, half: bool) -> dict[str, int]:
    return {
        "WIDTH": padded(head), "BLOCK_M": min(64, padded(rows)), "BLOCK_N": min(64, padded(keys)),
        "num_warps": 4, "num_stages": 3,
    }
