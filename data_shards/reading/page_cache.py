"""Brings shards into the kernel's page cache in large pieces, beside whatever else goes on.

Reading samples at random from a file that is not in memory leaves it there page by page, and every later read pays
for each page: a third of the speed. Streaming the file once avoids that, and disks are faster at it too. Only sets
that fit into half of the machine's memory are streamed; larger ones would not stay.
"""

import os
import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

_PIECE = 1 << 16
"""Bytes per read; the kernel's read-ahead then grows its pieces by itself, which it does not for larger reads."""
_PROBES = 8


class PageCache:
    """Streams shards in a thread of its own, one after the other. Pickles as an idle one."""

    def __init__(self, total: int) -> None:
        """For a set of `total` bytes."""
        self._total = total
        self._queue: SimpleQueue[int] | None = None
        self._process = os.getpid()
        self._allowed = total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return PageCache, (self._total,)

    def bring(self, handle: int, size: int) -> None:
        """Have an open file of `size` bytes streamed, if it is not in memory; does not wait."""
        if not self._allowed or not _is_cold(handle, size):
            return
        if self._queue is None or self._process != os.getpid():
            self._queue, self._process = SimpleQueue(), os.getpid()
            threading.Thread(target=_stream, args=(self._queue,), name="page-cache", daemon=True).start()
        self._queue.put(os.dup(handle))


def _is_cold(handle: int, size: int) -> bool:
    """Whether most of a file would have to come from the disk."""
    absent = 0
    for probe in range(_PROBES):
        try:
            os.preadv(handle, [bytearray(1)], probe * size // _PROBES, os.RWF_NOWAIT)
        except BlockingIOError:
            absent += 1
        except OSError:  # a file system that cannot tell
            return False
    return absent > _PROBES // 2


def _stream(queue: "SimpleQueue[int]") -> None:
    """Read every file that comes, from end to end, for nothing but its presence in memory."""
    piece = bytearray(_PIECE)
    while True:
        handle = queue.get()
        with suppress(OSError):  # whoever reads the sample will be told
            offset = 0
            while got := os.preadv(handle, [piece], offset):
                offset += got
        os.close(handle)
