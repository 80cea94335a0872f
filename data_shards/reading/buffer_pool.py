"""Memory for batches, reused once nobody holds the batch.

Fresh memory costs more than the data that goes into it: the kernel gives it page by page, zeroed. Arrays from here are
views of buffers that the pool owns, and a buffer without a view is reused. No batch has to be returned, and one may be
held for any time.
"""

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_BUFFERS = 64
"""Buffers per size; a caller that holds more batches than this gets memory of its own."""
_MIN_BYTES = 1 << 16
"""For smaller arrays the allocator reuses memory by itself."""


class BufferPool:
    """A pool; may be shared by threads. Pickles as an empty one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffers: dict[int, list[NDArray[np.uint8]]] = {}
        """By size in bytes."""

    def __reduce__(self) -> tuple[type["BufferPool"], tuple[()]]:
        return BufferPool, ()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An uninitialised array."""
        size = math.prod(shape) * dtype.itemsize
        if size < _MIN_BYTES:
            return np.empty(shape, dtype)
        with self._lock:
            return self._take(size).view(dtype).reshape(shape)

    def _take(self, size: int) -> NDArray[np.uint8]:
        buffers = self._buffers.setdefault(size, [])
        for i in range(len(buffers)):
            if sys.getrefcount(buffers[i]) == _UNUSED_REFERENCES:
                return buffers[i]
        buffer = np.empty(size, np.uint8)
        if len(buffers) < _MAX_BUFFERS:
            buffers.append(buffer)
        return buffer


def _references_in_a_list() -> int:
    """The `sys.getrefcount` of an array that only a list holds, in this Python."""
    buffers = [np.empty(1, np.uint8)]
    return sys.getrefcount(buffers[0])


_UNUSED_REFERENCES = _references_in_a_list()
