"""Durable files: flushed writes, atomic replacements, and locks that end with their process."""

import errno
import fcntl
import hashlib
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 4 << 20
_CHUNK = 1 << 24


class Unreadable(OSError):
    """A file could not be read: permissions, a failing disk, storage that is away. The file itself may be whole."""


@contextmanager
def as_unreadable(path: Path | str) -> Iterator[None]:
    """Turn errors of the storage in the block into `Unreadable`, which names the file."""
    try:
        yield
    except Unreadable:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path | str, error: OSError) -> Unreadable:
    """The `Unreadable` for an error of the storage at `path`."""
    where, cause = error.filename or path, error.strerror or error
    return Unreadable(f"{where} cannot be read: {cause}; nothing was decided over it or changed")


class BlockWriter:
    """A new file, hashed as it is written, in blocks of 4 MiB.

    The blocks make reads faster: the page cache holds what was written at once in large folios, and copies them three
    times as fast as the single pages of a file that was written in small parts.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._block = bytearray(BLOCK_BYTES)
        self._filled = 0
        self._digest = hashlib.sha256()
        self.position = 0
        self.limit: int | None = None
        """Bytes that the file may have; what is written beyond them is dropped."""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        if self.limit is not None:
            data = data[: self.limit - self.position]
        self.position += len(data)
        while len(data) >= BLOCK_BYTES - self._filled:
            room = BLOCK_BYTES - self._filled
            self._block[self._filled :] = data[:room]
            self._filled = BLOCK_BYTES
            self._flush()
            data = data[room:]
        self._block[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def finish(self) -> str:
        """Flush everything to the disk; the file's sha256."""
        self._flush()
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def _flush(self) -> None:
        with memoryview(self._block)[: self._filled] as block:
            self._digest.update(block)
            self._file.write(block)
        self._filled = 0


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that renames in it survive a crash."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Wait for the lock file `path`, hold it, and remove it after the block; yields its file descriptor.

    The kernel releases the lock when the process ends, for whatever reason.
    """
    handle = _acquire(path)
    try:
        yield handle
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if is_same_file(handle, path):
            return handle
        os.close(handle)  # its previous holder removed the file between our open and our lock


APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CREAT
"""Flags to open a log."""


def open_regular(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """A descriptor of a regular file; by default to read and write it, and it is made if it is missing.

    The directory may come from someone else: no link is followed, and no pipe is waited for.

    Args:
        flags: of `os.open`.

    Raises:
        OSError: as `os.open`.
        ValueError: a link, a pipe, a directory or the like has that name.
    """
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return handle
        os.close(handle)
    raise ValueError(f"{path} is not a regular file, so nothing was written; remove it")


def read_regular(path: Path) -> BinaryIO:
    """A regular file, opened to read it. A link is followed, and no pipe is waited for.

    Raises:
        OSError: as `os.open`.
        ValueError: a pipe, a directory or the like has that name.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
    else:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            return os.fdopen(handle, "rb")
        os.close(handle)
    raise ValueError(f"{path} is not a regular file; remove it, or restore the file")


def is_same_file(handle: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`: it was neither removed nor replaced."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What a file holds: its size in bytes and the hex sha256 of its content."""

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """Write and fsync a new file from chunks of bytes; return size and digest. Raises OSError, also if it exists."""
    digest, size = hashlib.sha256(), 0
    with open(path, "xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size=size, sha256=digest.hexdigest())


def read_entry(path: Path) -> FileEntry:
    """Size and sha256 of a file as it is on disk. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(size=size, sha256=digest.hexdigest())


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically: a reader or a crash sees the old content or the new one. Raises OSError."""
    staged = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        write_file(staged, [content])
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    sync_directory(path.parent)
