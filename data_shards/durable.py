"""Files that are on disk when they have their name: flushed writes, directory syncs, and locks that die with you."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """A new file for writing, flushed to the disk when the block ends."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Flush a directory's entries, so that renames in it survive a crash."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, *, busy: str = "") -> Iterator[int]:
    """Hold the lock file `path`, which goes away with the block; yields its file descriptor.

    With `busy`, a lock that another process holds is a `ValueError` with this text; without, wait for it. The kernel
    drops the lock when its holder dies, however it dies.
    """
    handle = _acquire(path, busy)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield handle
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _acquire(path: Path, busy: str) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError as error:
            owner = os.read(handle, 64).decode(errors="replace").strip()
            os.close(handle)
            raise ValueError(f"{busy} (process {owner}); wait for it or stop it") from error
        if _is_at(handle, path):
            return handle
        os.close(handle)  # the former holder removed the file between our open and our lock


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
