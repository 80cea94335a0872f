"""Open shards: reads at an offset; the files that were opened last stay open."""

import os
from typing import Any

from data_shards.durable import as_unreadable, unreadable
from data_shards.format.schema import ShardInfo
from data_shards.reading.damage import SUGGESTED_FIX, truncated
from data_shards.reading.page_cache import ReadAhead
from data_shards.storage.store import Store

_MAX_OPEN_SHARDS = 64


class _Handle:
    """An open file. It closes when nobody uses it any more, so not while another thread reads it."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class ShardFiles:
    """The shards of one set by their number. Picklable; safe across fork and threads: nothing shares a position."""

    def __init__(self, store: Store, shards: tuple[ShardInfo, ...]) -> None:
        self._store = store
        self._shards = shards
        # A dict, for threads: closing a handle lets another thread in, in the middle of an OrderedDict's operation.
        self._handles: dict[int, _Handle] = {}
        self._read_ahead = ReadAhead(sum(shard.bytes for shard in shards))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": {}}

    def read(self, shard: int, offset: int, parts: list[memoryview], size: int) -> None:
        """Fill `parts`, `size` bytes in all, from a shard, from `offset` on; `Damage` where it ends before."""
        handle = self._handles.get(shard) or self._open(shard)
        try:
            got = os.preadv(handle.number, parts, offset)
            while got < size:  # a signal or a network file system may return less
                more = os.preadv(handle.number, _remaining(parts, got), offset + got)
                if more == 0:
                    raise truncated(offset)
                got += more
        except OSError as error:
            raise unreadable(self.name(shard), error) from error

    def name(self, shard: int) -> str:
        """What errors call a shard."""
        return f"{self._store.place}/{self._shards[shard].name}"

    def fetch(self, shard: int) -> None:
        """Download a shard; nothing to do for a local one."""
        with as_unreadable(self.name(shard)):
            self._store.fetch(self._shards[shard])

    def discard(self, shard: int) -> bool:
        """Drop a damaged copy, so that the next read downloads it again; False for a local shard, which is no copy."""
        self._handles.pop(shard, None)
        return self._store.discard(self._shards[shard])

    def close(self) -> None:
        """Close all files; the next read opens what it needs."""
        self._handles.clear()

    def _open(self, shard: int) -> _Handle:
        with as_unreadable(self.name(shard)):
            try:
                handle = _Handle(self._store.open(self._shards[shard]))
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ValueError(f"cannot read {self.name(shard)}: {error.strerror}; {SUGGESTED_FIX}") from error
        self._read_ahead.request(handle.number, self._shards[shard].bytes)
        self._handles[shard] = handle
        for oldest in list(self._handles)[:-_MAX_OPEN_SHARDS]:
            self._handles.pop(oldest, None)
        return handle


def _remaining(parts: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `parts` after their first `done` bytes."""
    remaining = []
    for part in parts:
        if done < len(part):
            remaining.append(part[done:])
        done = max(0, done - len(part))
    return remaining
