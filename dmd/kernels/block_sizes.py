"""Block sizes."""

MIN_SIDE = 16
LEAST_SHARED_MEMORY = 99 * 1024


def padded(channels: int) -> int:
    """Channels of a program: a power of two that a matrix product takes."""
    return max(MIN_SIDE, 1 << (channels - 1).bit_length())


def row_sizes(kernel: str, dim: int, *, half: bool) -> dict[str, int]:
    width = padded(dim)
    return {
        "WIDTH": width, "M": 64 if half and width <= 64 else 32, "CHUNK": 64 if half and width <= 128 else 32,
        "num_warps": 8, "num_stages": 1 if kernel == "mlp_weights" and not half else 2,
    }  # fmt: skip


def attention_sizes(kernel: str, head: int, rows: int, keys: int, *, half: bool) -> dict[str, int]:
    return {
        "WIDTH": padded(head), "BLOCK_M": min(64, padded(rows)), "BLOCK_N": min(64, padded(keys)),
        "num_warps": 4, "num_stages": 3,
    }
