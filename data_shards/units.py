"""Quantities as people read them."""

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def size_text(count: int) -> str:
    """A number of bytes in the largest unit of which it has one."""
    power = min(len(_UNITS) - 1, (max(count, 1).bit_length() - 1) // 10)
    return f"{count / 1024**power:.{min(power, 1)}f} {_UNITS[power]}"
