"""Reads shards into the kernel's page cache from end to end, in a thread beside the training.

Random reads of a file that is not in memory bring it there page by page, and every later read is a third as fast as
from a file that was read in order. Reading in order is faster for disks, too. Only sets that fit into half of the
machine's memory are read ahead; larger ones would not stay in the cache.
"""

import os
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

_READ_BYTES = 1 << 16
"""Bytes per read. The kernel's own read-ahead grows for reads of this size, and not for larger ones."""
_PROBES = 8
"""Places of a file that are asked for, to see whether it is in the cache."""


class ReadAhead:
    """Reads shards in a thread of its own, one after the other. Pickles as an idle one."""

    def __init__(self, total: int) -> None:
        """For a set of `total` bytes."""
        self._total = total
        self._queue: SimpleQueue[int] | None = None
        self._process = os.getpid()
        self._fits_in_memory = total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return ReadAhead, (self._total,)

    def request(self, handle: int, size: int) -> None:
        """Ask for an open file of `size` bytes, if it is not in memory; does not wait."""
        if not self._fits_in_memory or not _is_cold(handle, size):
            return
        if self._queue is None or self._process != os.getpid():
            self._queue = SimpleQueue()
            self._process = os.getpid()
            threading.Thread(target=_read_files, args=(self._queue,), name="page-cache", daemon=True).start()
        self._queue.put(os.dup(handle))


def _is_cold(handle: int, size: int) -> bool:
    """Whether most of a file would have to come from the disk."""
    absent = 0
    for probe in range(_PROBES):
        try:
            os.preadv(handle, [bytearray(1)], probe * size // _PROBES, os.RWF_NOWAIT)
        except BlockingIOError:
            absent += 1
        except OSError:  # a file system without RWF_NOWAIT
            return False
    return absent > _PROBES // 2


def _read_files(queue: "SimpleQueue[int]") -> None:
    """Read every file that comes, from end to end, and drop what was read: it is in the cache then."""
    block = bytearray(_READ_BYTES)
    while True:
        handle = queue.get()
        with suppress(OSError):  # the read of a sample will raise it again
            offset = 0
            while got := os.preadv(handle, [block], offset):
                offset += got
        os.close(handle)
