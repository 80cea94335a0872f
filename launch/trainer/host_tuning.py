"""Settings of this process that make a training on a CPU faster and change no number."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what a step frees for the next one; elsewhere nothing happens.

    By its defaults it gives tensors of a few MB back to the system and asks for them again, and the pages come in anew,
    one fault each: thousands in a step on a CPU (`docs/performance.md`). Peaks stay what they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_MMAP_MAX, 0)
