"""One directory behind an fsspec URL (`s3://`, `https://`, `gs://`, ...): ranged reads, whole downloads, uploads.

Every request has a time limit and is repeated with growing pauses: servers stall, answer 500 or send half a body.
Credentials and endpoints come from fsspec's own configuration, e.g. FSSPEC_S3_ENDPOINT_URL or AWS_PROFILE.
"""

import asyncio
import hashlib
import io
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from data_shards.durable import Unreadable
from data_shards.places import redact

Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_MAX_PAUSE = 10.0
STREAM_BUFFER_BYTES = 1 << 20
"""Bytes that a stream reads at once; tarfile asks for 10 KiB at a time."""


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """Time limits and attempts of requests to a server."""

    timeout: float = 60.0
    """Seconds for one request of one chunk."""
    attempts: int = 6
    """How often a request is made before it counts as failed."""
    pause: float = 0.25
    """Seconds before the second attempt; doubles each time, up to ten seconds, and varies by half."""
    chunk_bytes: int = 8 << 20
    streams: int = 4
    """Chunks of a file that are fetched at once."""


class Unreachable(Unreadable):
    """The server failed at every attempt; the file there may be whole."""


@dataclass(frozen=True)
class _Connection:
    """A file system that this process has opened."""

    process: int
    file_system: Any
    root: str
    """The path of the URL in it."""


class Remote:
    """The files right under one URL. Picklable; each process opens its own connections."""

    def __init__(self, url: str, options: RemoteOptions | None = None) -> None:
        self.url = url.rstrip("/")
        self.redacted_url = redact(self.url)
        """For messages: without user-info and query."""
        self.options = options or RemoteOptions()
        self._connection: _Connection | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None}

    def size(self, name: str) -> int:
        """Bytes of a file."""

        def request(fs: Any, path: str) -> int:
            fs.invalidate_cache()
            size = self._call(fs, "info", path).get("size")
            if not isinstance(size, int):
                raise OSError(f"the server does not say how large {name} is")
            return size

        return self._retry(name, request)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file."""

        def request(fs: Any, path: str) -> bytes:
            data: bytes = self._call(fs, "cat_file", path, start=start, end=stop)
            if len(data) >= stop > stop - start:  # a server without ranges sends the whole file
                data = data[start:stop]
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes instead of {stop - start}")
            return data

        return self._retry(name, request)

    def download(self, name: str, target: Path, *, size: int, sha256: str | None = None) -> None:
        """Download a file, flushed to disk; with `sha256`, download it again until it matches.

        Raises:
            ValueError: the file of the server does not match.
            Unreachable: no answer.
        """
        for _ in self.attempts():
            digest = hashlib.sha256()
            with open(os.open(target, os.O_WRONLY | os.O_CREAT, 0o644), "wb") as file:
                for chunk in self._chunks(name, size):
                    file.write(chunk)
                    digest.update(chunk)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
            if sha256 is None or digest.hexdigest() == sha256:
                return
            _log.warning("%s/%s came with wrong bytes; fetching it again", self.redacted_url, name)
        raise ValueError(
            f"{self.redacted_url}/{name} does not match its sha256: restore it, or rebuild with `dmd shard`"
        )

    def stream(self, name: str, size: int) -> BinaryIO:
        """The first `size` bytes of a file; at most `streams + 1` chunks are in memory.

        Reading raises ValueError where the file is not there or not to be read, Unreachable where there is no answer.
        """
        return io.BufferedReader(_Chunks(self._chunks(name, size)), STREAM_BUFFER_BYTES)

    def upload(self, path: Path, name: str) -> None:
        """Store a local file under `name`; replaces another one atomically where the server can."""

        def request(fs: Any, target: str) -> None:
            if isinstance(fs, AsyncFileSystem):
                limit = self.options.timeout * (1 + path.stat().st_size / self.options.chunk_bytes)
                sync(fs.loop, fs._put_file, str(path), target, timeout=limit)
            else:
                fs.put_file(str(path), target)

        self._retry(name, request)

    def write(self, name: str, content: bytes) -> None:
        """Store a small file under `name`; replaces another one atomically where the server can."""
        self._retry(name, lambda fs, path: self._call(fs, "pipe_file", path, content))

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return self._retry(name, lambda fs, path: bool(self._call(fs, "exists", path)))

    def names(self) -> list[str]:
        """The names of all files."""

        def request(fs: Any, path: str) -> list[str]:
            fs.invalidate_cache()
            folder = path.rsplit("/", 1)[0]
            found = self._call(fs, "ls", folder, detail=False) if self._call(fs, "exists", folder) else []
            return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found)

        return self._retry("", request)

    def remove(self, name: str) -> None:
        """Delete a file."""
        self._retry(name, lambda fs, path: self._call(fs, "rm_file", path))

    def _chunks(self, name: str, size: int) -> Generator[bytes, None, None]:
        """The chunks of a file in order; a few of them are downloaded at once."""
        step, pending = self.options.chunk_bytes, []
        pool = ThreadPoolExecutor(self.options.streams)
        try:
            for start in range(0, size, step):
                pending.append(pool.submit(self.read, name, start, min(start + step, size)))
                if len(pending) == self.options.streams:
                    yield pending.pop(0).result()
            yield from map(Future.result, pending)
        finally:
            pool.shutdown(cancel_futures=True)

    def _retry(self, name: str, request: Callable[[Any, str], Result]) -> Result:
        """`request(file system, path)`, repeated while the server fails."""
        where = f"{self.redacted_url}/{name}"
        for attempt in self.attempts():
            try:
                connection = self._connect()
                return request(connection.file_system, _file(connection.root, name))
            except _transient_errors() as caught:
                error = _root_cause(caught)
                reason = redact(str(error)) or type(error).__name__
                if (problem := _permanent_problem(error, reason)) is not None:
                    raise ValueError(f"{where}{problem}") from error
                _log.info("%s: %s (attempt %d of %d)", where, reason, attempt + 1, self.options.attempts)
        raise Unreachable(f"{where}: {' '.join(reason.split())[:200]}; gave up after {self.options.attempts} attempts")

    def attempts(self) -> Iterator[int]:
        """Numbers the times that something is tried, from 0 on, and pauses before each but the first."""
        for attempt in range(self.options.attempts):
            if attempt:
                time.sleep(min(_MAX_PAUSE, self.options.pause * 2 ** (attempt - 1)) * random.uniform(0.5, 1.5))
            yield attempt

    def _call(self, fs: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """A file system's method within the time limit (which synchronous file systems do not know)."""
        if isinstance(fs, AsyncFileSystem):
            return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=self.options.timeout, **kwargs)
        return getattr(fs, method)(*args, **kwargs)

    def _connect(self) -> _Connection:
        if self._connection is None or self._connection.process != os.getpid():
            try:
                fs, root = fsspec.core.url_to_fs(self.url)
            except ImportError as error:
                raise ValueError(f"{self.redacted_url}: {error}; pip install 'dmd-cluster[remote]'") from error
            self._connection = _Connection(os.getpid(), fs, root.rstrip("/"))
        return self._connection


class _Chunks(io.RawIOBase):
    """Chunks of a file, one after the other, as a file."""

    def __init__(self, chunks: Generator[bytes, None, None]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = memoryview(b"")
        """What is left of the chunk that was asked for last."""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the chunk goes; 0 at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        target = memoryview(buffer)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def close(self) -> None:
        """Stop asking for chunks."""
        self._chunks.close()
        super().close()


def _file(root: str, name: str) -> str:
    """The path of a file under a root; the query of a signed URL stays at the end."""
    folder, mark, query = root.partition("?") if root.startswith(("http://", "https://")) else (root, "", "")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def _permanent_problem(error: BaseException, reason: str) -> str | None:
    """What is wrong where another attempt would not help, as it follows a URL in a message; None where one may."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return " is not there"
    if isinstance(error, PermissionError | _missing_credentials_error()) or status in (401, 403):
        return f": access denied ({reason}); check the credentials"
    return None if isinstance(error, _transient_errors()) else f": {reason}"


def _root_cause(error: BaseException) -> BaseException:
    """The error behind a FileNotFoundError of fsspec's HTTP, which raises it for every request that fails."""
    aiohttp = sys.modules.get("aiohttp")
    known = (ValueError, asyncio.TimeoutError, *([aiohttp.ClientError] if aiohttp else []))
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    return cause if isinstance(cause, known) else error


def _missing_credentials_error() -> type[BaseException]:
    """What botocore raises where it finds no credentials, before any request."""
    botocore = sys.modules.get("botocore.exceptions")
    return botocore.NoCredentialsError if botocore else PermissionError


def _transient_errors() -> tuple[type[BaseException], ...]:
    """The errors that the loaded client libraries raise when a server fails."""
    kinds: list[type[BaseException]] = [OSError, EOFError, asyncio.TimeoutError]
    if aiohttp := sys.modules.get("aiohttp"):
        kinds.append(aiohttp.ClientError)
    if botocore := sys.modules.get("botocore.exceptions"):
        kinds += [botocore.BotoCoreError, botocore.ClientError]
    return tuple(kinds)
