"""Settings of this process that make a training on a CPU faster, with the same results."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what a step frees for the next one; elsewhere nothing happens.

    By default it returns tensors of a few MB to the system and requests them again. Each of their pages then is a page
    fault: thousands in a step on a CPU (`docs/performance.md`). Peak memory is unchanged.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)
