"""Where a set of shards is: a local directory, or a URL whose files come through the node's cache."""

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

from data_shards.durable import locked
from data_shards.format.index_file import INDEX_NAME, TAIL_BYTES, IndexFile
from data_shards.format.schema import ShardInfo
from data_shards.places import Place, PlaceLike, to_place
from data_shards.storage.cache import Cache, CacheOptions
from data_shards.storage.remote import STREAM_BUFFER_BYTES, Remote, RemoteOptions, Unreachable

_log = logging.getLogger(__name__)
_MAX_FETCHES = 20
"""How often a shard is downloaded at most to be opened once."""
_INDEX_ATTEMPTS = 3


class Store(Protocol):
    """Gives the local files of an index and of shards."""

    @property
    def place(self) -> str:
        """What messages and records call it."""

    @property
    def is_remote(self) -> bool:
        """Whether shards must be fetched before they can be read."""

    def index(self) -> Path:
        """A local file with the current index; `ValueError` where there is none."""

    def fetch(self, shard: ShardInfo) -> None:
        """Make a shard available; `ValueError` where that fails."""

    def open(self, shard: ShardInfo) -> int:
        """A descriptor of a local file with a shard; `ValueError` or `OSError` where there is none."""

    def stream(self, shard: ShardInfo) -> BinaryIO:
        """The bytes of a shard from its start on, and no copy of it on a disk; `ValueError` or `OSError`, also while
        they are read, where there are none."""

    def attempts(self) -> Iterable[int]:
        """Numbers the times that a shard may be streamed before it counts as damaged, and pauses between them."""

    def discard(self, shard: ShardInfo) -> bool:
        """Delete a damaged local copy; False where the local file is the original."""


def open_store(given: PlaceLike, *, cache: CacheOptions | None = None, remote: RemoteOptions | None = None) -> Store:
    """The store at a directory or URL."""
    place = to_place(given)
    if place.is_url:
        return RemoteStore(place, cache or CacheOptions.from_environment(), remote)
    return LocalStore(place.path)


def was_opened(place: Place) -> bool:
    """Whether shards at this URL, with any credentials, have been read with this node's cache before."""
    return Cache(CacheOptions.from_environment()).has_index(_key(str(place)))


def _key(url: str) -> str:
    return hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]


class LocalStore:
    """A directory."""

    is_remote = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(root)

    def index(self) -> Path:
        """The index in the directory."""
        path = self.root / INDEX_NAME
        if not path.is_file():
            what = f"holds no {INDEX_NAME}" if self.root.is_dir() else "is no directory"
            raise ValueError(
                f"{self.root} {what}: not a set of shards; make one with `dmd shard`, or name the place that it was "
                "moved to (for the shards of a run, with --data)"
            )
        return path

    def fetch(self, shard: ShardInfo) -> None:
        """Nothing: it is there, or `open` says that it is not."""

    def open(self, shard: ShardInfo) -> int:
        """The shard in the directory."""
        return os.open(self.root / shard.name, os.O_RDONLY)

    def stream(self, shard: ShardInfo) -> BinaryIO:
        """The shard in the directory."""
        return open(self.root / shard.name, "rb", buffering=STREAM_BUFFER_BYTES)

    def attempts(self) -> Iterable[int]:
        """One: a file has the same bytes the next time."""
        return range(1)

    def discard(self, shard: ShardInfo) -> bool:
        """Nothing: the file is the original."""
        return False


class RemoteStore:
    """A URL. Once all shards were downloaded the only request is for the index, and that one may fail."""

    is_remote = True

    def __init__(self, place: Place, cache: CacheOptions, remote: RemoteOptions | None = None) -> None:
        self.place = str(place)
        self._remote = Remote(place.address, remote)
        self._cache = Cache(cache)

    def index(self) -> Path:
        """A copy of the index that the URL offers now, or of its last one if the server does not answer."""
        directory = self._cache.index_directory(_key(self._remote.url))
        try:
            index = self._fetch_index(directory)
            self._cache.index_directory(_key(self.place))  # what `was_opened` looks for
            return index
        except Unreachable as error:
            copies = sorted(directory.glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
            if not copies:
                raise
            _log.warning("%s; using the index that was fetched before", error)
            return copies[-1]

    def fetch(self, shard: ShardInfo) -> None:
        """Download the shard into the node's cache."""
        self._cached_copy(shard)

    def open(self, shard: ShardInfo) -> int:
        """The node's copy of a shard, downloaded where there is none.

        Another process may evict it before it is open here; then it is downloaded again.
        """
        for _ in range(_MAX_FETCHES):
            try:
                return os.open(self._cached_copy(shard), os.O_RDONLY)
            except FileNotFoundError:
                continue
        raise ValueError(
            f"{self.place}/{shard.name}: other processes dropped its copy {_MAX_FETCHES} times before it was read; the "
            "cache is too small for them, raise DMD_CACHE_BYTES"
        )

    def stream(self, shard: ShardInfo) -> BinaryIO:
        """The shard as the server sends it, in chunks that are repeated like any request."""
        return self._remote.stream(shard.name, shard.bytes)

    def attempts(self) -> Iterable[int]:
        """As many as of any request: bytes may be damaged on their way, or be replaced while they come."""
        return self._remote.attempts()

    def _cached_copy(self, shard: ShardInfo) -> Path:
        def download(path: Path) -> None:
            self._remote.download(shard.name, path, size=shard.bytes, sha256=shard.sha256)

        return self._cache.shard(shard.sha256, shard.bytes, download)

    def discard(self, shard: ShardInfo) -> bool:
        """Delete the node's copy."""
        self._cache.discard(shard.sha256)
        return True

    def _fetch_index(self, directory: Path) -> Path:
        """A copy of the index. Its tail has the footer's sha256, which says whether a copy here is current."""
        problem = ValueError(f"{self.place}/{INDEX_NAME} changes faster than it can be read")
        for _ in range(_INDEX_ATTEMPTS):
            size = self._remote.size(INDEX_NAME)
            tail = self._remote.read(INDEX_NAME, max(0, size - TAIL_BYTES), size)
            path = directory / f"{hashlib.sha256(tail).hexdigest()[:32]}.parquet"
            with locked(path.with_suffix(".lock")):
                if path.is_file():
                    os.utime(path)
                    return path
                part = path.with_suffix(".part")
                self._remote.download(INDEX_NAME, part, size=size)
                try:
                    file = IndexFile(part, name=f"{self.place}/{INDEX_NAME}")
                    if file.tail == tail:
                        file.check()
                        os.replace(part, path)
                        return path
                except ValueError as error:
                    _log.warning("%s", error)
                    problem = error
                finally:
                    part.unlink(missing_ok=True)
        raise problem
