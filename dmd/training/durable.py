"""Files that are on disk when a call returns: written and fsynced, hashed on the way, replaced as a whole."""

import hashlib
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_shards.durable import sync_directory

_CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """What a file holds: its size in bytes and the hex sha256 of its content."""

    size: int
    sha256: str


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileEntry:
    """Write a new file from chunks of bytes, fsync it, and say what it holds. Raises OSError, also if it exists."""
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
    """Put `content` in the place of the file: a reader or a crash sees the old or the new one. Raises OSError."""
    staged = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        write_file(staged, [content])
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    sync_directory(path.parent)
