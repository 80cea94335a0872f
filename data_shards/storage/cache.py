"""The local copies of remote shards, shared by all processes of a node: checksummed, limited in size, LRU.

A shard is stored under its sha256. One process downloads it while others wait, and it has its name only when it is
complete. Locks are the kernel's, so a killed process blocks no other. A file that is open when it is evicted stays
readable until it is closed.
"""

import fcntl
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data_shards.durable import locked

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """Where copies are stored, and their size limit."""

    root: Path
    limit: int
    """Bytes."""

    @classmethod
    def from_environment(cls) -> "CacheOptions":
        """DMD_CACHE_DIR (default ~/.cache/dmd-shards) and DMD_CACHE_BYTES (default 100G; K, M, G, T are understood).

        Raises:
            ValueError: no home directory and no DMD_CACHE_DIR, or no size.
        """
        root = os.environ.get("DMD_CACHE_DIR")
        try:
            directory = Path(root) if root else Path.home() / ".cache" / "dmd-shards"
        except RuntimeError as error:  # neither HOME nor an entry in the password file
            raise ValueError("there is no home directory to keep remote shards in; set DMD_CACHE_DIR") from error
        return cls(root=directory, limit=parse_bytes(os.environ.get("DMD_CACHE_BYTES") or "100G", "DMD_CACHE_BYTES"))


def parse_bytes(text: str, what: str) -> int:
    """A size such as `500M` in bytes."""
    number = text.strip().upper().removesuffix("B")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        size = int(float(number.removesuffix(unit)) * _UNITS[unit])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{what} {text!r} is no size; write for example 100G") from error
    if size < 1:
        raise ValueError(f"{what} {text!r} is no size; write for example 100G")
    return size


class Cache:
    """The copies in one directory."""

    def __init__(self, options: CacheOptions) -> None:
        self.options = options
        self._shards = options.root / "shards"

    def index_directory(self, name: str) -> Path:
        """Where the indexes of one remote set are stored; they do not count towards the limit."""
        return _make_directory(self.options.root / "indexes" / name)

    def has_index(self, name: str) -> bool:
        """Whether a remote set has its directory here."""
        return (self.options.root / "indexes" / name).is_dir()

    def shard(self, sha256: str, size: int, fetch: Callable[[Path], None]) -> Path:
        """The copy of a shard. Where there is none, `fetch(path)` downloads it, and raises unless it is complete."""
        path = self._shards / f"{sha256}.tar"
        if self._touch(path, size):
            return path
        if size > self.options.limit:
            raise ValueError(
                f"a shard of {size} bytes does not fit into the cache {self.options.root} "
                f"of {self.options.limit}; raise DMD_CACHE_BYTES"
            )
        _make_directory(self._shards)
        part = path.with_suffix(".part")
        with locked(path.with_suffix(".lock")):
            if not self._touch(path, size):
                with locked(self._shards / "room.lock"):
                    self._evict(size)
                    _reserve(part, size)
                try:
                    fetch(part)
                    os.replace(part, path)
                finally:
                    part.unlink(missing_ok=True)
        return path

    def discard(self, sha256: str) -> None:
        """Delete the copy of a shard, so that it is downloaded again."""
        (self._shards / f"{sha256}.tar").unlink(missing_ok=True)

    def _touch(self, path: Path, size: int) -> bool:
        """Note the use of a copy; False where there is none, or an incomplete one."""
        try:
            os.utime(path)
            return path.stat().st_size == size
        except FileNotFoundError:
            return False

    def _evict(self, size: int) -> None:
        """Delete abandoned downloads, then the least recently used copies, until `size` more bytes fit."""
        for part in self._shards.glob("*.part"):
            if not _is_locked(part.with_suffix(".lock")):
                part.unlink(missing_ok=True)
        copies = _statuses(self._shards.glob("*.tar"))
        downloads = _statuses(self._shards.glob("*.part"))
        used = sum(status.st_size for status in [*copies.values(), *downloads.values()])
        for path in sorted(copies, key=lambda path: copies[path].st_mtime_ns):
            if used + size <= self.options.limit:
                break
            path.unlink(missing_ok=True)
            used -= copies[path].st_size


def _statuses(paths: Iterable[Path]) -> dict[Path, os.stat_result]:
    """The status of those files that are still there."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):
            found[path] = path.stat()
    return found


def _make_directory(directory: Path) -> Path:
    """Make a directory of the cache. Raises ValueError, which suggests a fix, where that fails."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"remote shards cannot be kept in {directory}: {error.strerror}; set DMD_CACHE_DIR to a directory that can "
            "be written"
        ) from error
    return directory


def _reserve(part: Path, size: int) -> None:
    """Give a download its full size from its start, so that it counts with it."""
    with open(part, "wb") as file:
        file.truncate(size)


def _is_locked(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
