"""Settings of this process that make a training on a CPU faster, with the same results."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Of glibc's malloc.h."""
_MOST_MAPPED = 65536
"""Glibc's M_MMAP_MAX where nobody sets it."""
_ADAPTED_THRESHOLD = 32 << 20
"""Up to which glibc by itself raises M_MMAP_THRESHOLD; M_TRIM_THRESHOLD then is twice as much (malloc.c)."""


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what a step frees for the next one, for good; elsewhere nothing happens.

    By default it returns tensors of a few MB to the system and requests them again. Each of their pages then is a page
    fault: thousands in a step on a CPU (`docs/performance.md`). Peak memory is unchanged.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """`keep_freed_memory` in a block, after which malloc gives memory back to the system again.

    What it does by itself cannot be set: it adapts thresholds until one of them is given. Afterwards they are at the
    values where that ends.
    """
    keep_freed_memory()
    try:
        yield
    finally:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_MAX, _MOST_MAPPED)
            libc.mallopt(M_MMAP_THRESHOLD, _ADAPTED_THRESHOLD)
            libc.mallopt(M_TRIM_THRESHOLD, 2 * _ADAPTED_THRESHOLD)
            libc.malloc_trim(0)
