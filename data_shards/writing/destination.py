"""Where a build puts its shards: a directory, or a URL. The index comes last, so a set changes in one step."""

import logging
import os
import re
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_shards.durable import sync_directory
from data_shards.format.index_file import INDEX_NAME
from data_shards.format.shard_rows import ShardRows
from data_shards.places import PlaceLike, to_place
from data_shards.reading.index import ShardIndex
from data_shards.sole_writer import sole_writer
from data_shards.storage.remote import Remote, RemoteOptions, Unreachable
from data_shards.storage.store import open_store

_log = logging.getLogger(__name__)
_STAGING = ".staging-"
_REMOVALS = 16
"""Files of a bucket that are deleted at once."""
DIGEST_DIGITS = 16
"""Hexadecimal digits of a shard's sha256 that are part of its name."""
_SHARD_NAME = re.compile(rf"(train|valid|test)-\d{{6}}-[0-9a-f]{{{DIGEST_DIGITS}}}\.tar")


@dataclass(frozen=True, kw_only=True)
class WrittenShard:
    """A shard that a task has written."""

    rows: ShardRows
    name: str
    """Its final name, which carries a digest of its content."""
    file: Path | None
    """Where it is; None: at its final place."""


class ShardWriter(Protocol):
    """What a task is given to write its shard with; picklable."""

    def write(self, write: Callable[[Path], ShardRows], prefix: str) -> WrittenShard:
        """Write a shard.

        Args:
            write: writes it to the file that it is given, which is not there.
            prefix: what its final name begins with.
        """


@dataclass(frozen=True)
class _StagedWriter:
    """Writes into the staging directory, under a name of its own: an earlier attempt may still be at work."""

    staging: Path

    def write(self, write: Callable[[Path], ShardRows], prefix: str) -> WrittenShard:
        file = self.staging / f"{uuid.uuid4().hex}.tar"
        rows = write(file)
        return WrittenShard(rows=rows, name=_final_name(prefix, rows), file=file)


@dataclass(frozen=True)
class _UploadingWriter:
    """Writes a file of this host and uploads it under its final name, unless the set that is there has it already."""

    remote: Remote
    there: frozenset[str]

    def write(self, write: Callable[[Path], ShardRows], prefix: str) -> WrittenShard:
        with tempfile.TemporaryDirectory(prefix="dmd-shards-") as folder:
            file = Path(folder) / "shard.tar"
            rows = write(file)
            name = _final_name(prefix, rows)
            if name not in self.there:
                self.remote.upload(file, name)
        return WrittenShard(rows=rows, name=name, file=None)


def _final_name(prefix: str, rows: ShardRows) -> str:
    return f"{prefix}-{rows.sha256[:DIGEST_DIGITS]}.tar"


class Destination(ABC):
    """Where a build writes: shards are written by tasks, added one by one, then published."""

    def __init__(self, place: PlaceLike, staging: Path, lock: int | None = None) -> None:
        self.staging = staging
        self.lock_handles = () if lock is None else (lock,)
        """File descriptors that writer processes must close."""
        self._previous = _shard_names(place)
        """Shards of the set that the build replaces."""

    def writer(self, *, apart: bool) -> ShardWriter:
        """What tasks write with; `apart` are those that run on other hosts."""
        return _StagedWriter(self.staging)

    @property
    def settle(self) -> Callable[[WrittenShard], None] | None:
        """What takes shards of tasks on other hosts that no one waits for any more, so that they are withdrawn; None:
        they lie in the staging directory."""
        return None

    @abstractmethod
    def add_shard(self, shard: WrittenShard) -> None:
        """Take a shard into the set that is published."""

    @abstractmethod
    def publish(self) -> None:
        """Make the staged index the current one."""


class _LocalDestination(Destination):
    def __init__(self, root: Path, staging: Path, lock: int, keep: Collection[str]) -> None:
        super().__init__(root, staging, lock)
        self._root = root
        self._keep = keep
        self._names: list[str] = []

    def add_shard(self, shard: WrittenShard) -> None:
        assert shard.file is not None
        os.replace(shard.file, self.staging / shard.name)
        self._names.append(shard.name)

    def publish(self) -> None:
        sync_directory(self.staging)
        for name in self._names:
            os.replace(self.staging / name, self._root / name)
        sync_directory(self._root)
        os.replace(self.staging / INDEX_NAME, self._root / INDEX_NAME)
        sync_directory(self._root)
        wanted = {*self._names, *self._keep, *self._previous}  # readers may still use the previous set
        for path in self._root.iterdir():
            if _SHARD_NAME.fullmatch(path.name) and path.name not in wanted:
                path.unlink()


class _RemoteDestination(Destination):
    def __init__(self, remote: Remote, staging: Path) -> None:
        super().__init__(remote.url, staging)
        self._remote = remote
        self._uploaded: list[str] = []

    def writer(self, *, apart: bool) -> ShardWriter:
        return _UploadingWriter(self._remote, frozenset(self._previous)) if apart else super().writer(apart=apart)

    @property
    def settle(self) -> Callable[[WrittenShard], None] | None:
        return self.add_shard

    def add_shard(self, shard: WrittenShard) -> None:
        if shard.name not in self._previous:
            self._uploaded.append(shard.name)
            if shard.file is not None:
                self._remote.upload(shard.file, shard.name)
        if shard.file is not None:
            shard.file.unlink()

    def publish(self) -> None:
        self._remote.upload(self.staging / INDEX_NAME, INDEX_NAME)

    def remove_uploads(self) -> None:
        """Remove the shards of a build that failed before its index was uploaded."""
        with ThreadPoolExecutor(_REMOVALS) as pool:
            for _ in pool.map(self._remove_upload, self._uploaded):
                pass

    def _remove_upload(self, name: str) -> None:
        try:
            self._remote.remove(name)
        except (ValueError, Unreachable) as error:
            _log.warning("left over: %s", error)


@contextmanager
def open_destination(
    given: PlaceLike, *, keep: Collection[str] = (), remote: RemoteOptions | None = None
) -> Iterator[Destination]:
    """Begin a build at a directory or URL. What is there stays as it is unless the build publishes.

    Args:
        keep: shards that are already in place, and stay.

    Raises:
        ValueError: another build is at work in the directory, or a file is in the way.
    """
    place = to_place(given)
    if place.is_url:
        if place.address.startswith(("http://", "https://")):
            raise ValueError(f"{place} cannot be written to; give a directory or a bucket")
        with tempfile.TemporaryDirectory(prefix="dmd-shards-") as staging:
            destination = _RemoteDestination(Remote(place.address, remote), Path(staging))
            try:
                yield destination
            except BaseException:
                destination.remove_uploads()
                raise
        return
    root = place.path
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file; give a directory for the shards")
    with sole_writer(root) as lease:
        for leftover in root.glob(f"{_STAGING}*"):
            shutil.rmtree(leftover)
        folder = root / f"{_STAGING}{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        try:
            yield _LocalDestination(root, folder, lease.handle, keep)
        finally:
            _remove(folder)


def _remove(staging: Path) -> None:
    """Remove a staging directory. A host that is cut off may still add files to it; the next build removes those."""
    try:
        shutil.rmtree(staging)
    except OSError as error:
        _log.warning("left over: %s: %s", staging, error.strerror or error)


def _shard_names(place: PlaceLike) -> set[str]:
    """The shards of the set that is at a place now; none where there is no set that can be read."""
    try:
        return {shard.name for shard in ShardIndex(open_store(place)).info.shards}
    except ValueError:
        return set()
