"""Memory for batches that is used again once nobody holds the batch.

Fresh memory costs more than the data that goes into it: the kernel hands it out page by page, zeroed. Arrays from
here are views of buffers that the pool owns; a buffer with no view left is given out again. Nobody has to give
anything back, and a batch may be kept for as long as one likes.
"""

import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEPT = 64
"""Buffers per size; a caller that holds more batches than this gets memory of its own."""
_SMALL = 1 << 16
"""Below this many bytes the allocator reuses memory by itself."""


class Buffers:
    """A pool; may be shared by threads. Pickles as an empty one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[int, list[NDArray[np.uint8]]] = {}

    def __reduce__(self) -> tuple[type["Buffers"], tuple[()]]:
        return Buffers, ()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An uninitialised array."""
        size = int(np.prod(shape)) * dtype.itemsize
        if size < _SMALL:
            return np.empty(shape, dtype)
        with self._lock:
            return self._take(size).view(dtype).reshape(shape)

    def _take(self, size: int) -> NDArray[np.uint8]:
        kept = self._kept.setdefault(size, [])
        for i in range(len(kept)):
            if sys.getrefcount(kept[i]) == _ONLY_THE_POOL:
                return kept[i]
        buffer = np.empty(size, np.uint8)
        if len(kept) < _KEPT:
            kept.append(buffer)
        return buffer


def _count_of_unused() -> int:
    """What `sys.getrefcount` says of an array that only a list holds, in this Python."""
    kept = [np.empty(1, np.uint8)]
    return sys.getrefcount(kept[0])


_ONLY_THE_POOL = _count_of_unused()
