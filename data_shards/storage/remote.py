"""One directory behind an fsspec URL (`s3://`, `https://`, `gs://`, ...): ranged reads, whole downloads, uploads.

Every request has a time limit and is repeated with growing pauses: servers stall, answer 500 and cut bodies short.
Credentials and endpoints come from fsspec's own configuration, e.g. FSSPEC_S3_ENDPOINT_URL or AWS_PROFILE.
"""

import asyncio
import hashlib
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from data_shards.durable import Unreadable
from data_shards.places import redact

Result = TypeVar("Result")
_log = logging.getLogger(__name__)
_LONGEST_PAUSE = 10.0


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """How patient to be with a server."""

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
    """The server did not answer properly, however often it was asked; what is there may be whole."""


class Remote:
    """The files right under one URL. Picklable; each process opens its own connections."""

    def __init__(self, url: str, options: RemoteOptions | None = None) -> None:
        self.url = url.rstrip("/")
        self.shown = redact(self.url)
        """For messages: without user-info and query."""
        self.options = options or RemoteOptions()
        self._opened: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def size(self, name: str) -> int:
        """Bytes of a file."""

        def ask(fs: Any, path: str) -> int:
            fs.invalidate_cache()
            size = self._call(fs, "info", path).get("size")
            if not isinstance(size, int):
                raise OSError(f"the server does not say how large {name} is")
            return size

        return self._retry(name, ask)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file."""

        def ask(fs: Any, path: str) -> bytes:
            data: bytes = self._call(fs, "cat_file", path, start=start, end=stop)
            if len(data) >= stop > stop - start:  # a server without ranges sends the whole file
                data = data[start:stop]
            if len(data) != stop - start:
                raise OSError(f"{len(data)} bytes instead of {stop - start}")
            return data

        return self._retry(name, ask)

    def download(self, name: str, target: Path, *, size: int, sha256: str | None = None) -> None:
        """Fetch a file, flushed to disk; with `sha256`, fetch it again until it is right.

        Raises:
            ValueError: the server's copy stays wrong.
            Unreachable: no answer.
        """
        for attempt in range(self.options.attempts):
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
            _log.warning("%s/%s came with wrong bytes; fetching it again", self.shown, name)
            self._sleep(attempt)
        raise ValueError(f"{self.shown}/{name} does not match its sha256: restore it, or rebuild with `dmd shard`")

    def upload(self, path: Path, name: str) -> None:
        """Store a local file under `name`, replacing what was there in one step where the store can."""

        def put(fs: Any, target: str) -> None:
            if isinstance(fs, AsyncFileSystem):
                limit = self.options.timeout * (1 + path.stat().st_size / self.options.chunk_bytes)
                sync(fs.loop, fs._put_file, str(path), target, timeout=limit)
            else:
                fs.put_file(str(path), target)

        self._retry(name, put)

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        return self._retry(name, lambda fs, path: bool(self._call(fs, "exists", path)))

    def names(self) -> list[str]:
        """The names of all files."""

        def ask(fs: Any, path: str) -> list[str]:
            fs.invalidate_cache()
            folder = path.rsplit("/", 1)[0]
            found = self._call(fs, "ls", folder, detail=False) if self._call(fs, "exists", folder) else []
            return sorted(str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in found)

        return self._retry("", ask)

    def remove(self, name: str) -> None:
        """Delete a file."""
        self._retry(name, lambda fs, path: self._call(fs, "rm_file", path))

    def _chunks(self, name: str, size: int) -> Iterator[bytes]:
        """The chunks of a file in order, a few of them on their way at any time."""
        step, pending = self.options.chunk_bytes, []
        with ThreadPoolExecutor(self.options.streams) as pool:
            for start in range(0, size, step):
                pending.append(pool.submit(self.read, name, start, min(start + step, size)))
                if len(pending) == self.options.streams:
                    yield pending.pop(0).result()
            yield from map(Future.result, pending)

    def _retry(self, name: str, ask: Callable[[Any, str], Result]) -> Result:
        """`ask(file system, path)`, repeated while the server fails."""
        where = f"{self.shown}/{name}"
        for attempt in range(self.options.attempts):
            try:
                fs, root = self._open()
                return ask(fs, _file(root, name))
            except _transient() as told:
                error = _behind(told)
                reason = redact(str(error)) or type(error).__name__
                status = getattr(error, "status", None)
                if isinstance(error, FileNotFoundError) or status in (404, 410):
                    raise ValueError(f"{where} is not there") from error
                if isinstance(error, PermissionError | _without_credentials()) or status in (401, 403):
                    raise ValueError(f"{where}: access denied ({reason}); check the credentials") from error
                if not isinstance(error, _transient()):
                    raise ValueError(f"{where}: {reason}") from error
                _log.info("%s: %s (attempt %d of %d)", where, reason, attempt + 1, self.options.attempts)
                if attempt + 1 < self.options.attempts:
                    self._sleep(attempt)
        raise Unreachable(f"{where}: {' '.join(reason.split())[:200]}; gave up after {self.options.attempts} attempts")

    def _sleep(self, attempt: int) -> None:
        time.sleep(min(_LONGEST_PAUSE, self.options.pause * 2**attempt) * random.uniform(0.5, 1.5))

    def _call(self, fs: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """A file system's method within the time limit (which synchronous file systems do not know)."""
        if isinstance(fs, AsyncFileSystem):
            return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=self.options.timeout, **kwargs)
        return getattr(fs, method)(*args, **kwargs)

    def _open(self) -> tuple[Any, str]:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                fs, root = fsspec.core.url_to_fs(self.url)
            except ImportError as error:
                raise ValueError(f"{self.shown}: {error}; pip install 'dmd-cluster[remote]'") from error
            self._opened = os.getpid(), fs, root.rstrip("/")
        return self._opened[1], self._opened[2]


def _file(root: str, name: str) -> str:
    """The path of a file under a root; the query of a signed URL stays at the end."""
    folder, mark, query = root.partition("?") if root.startswith(("http://", "https://")) else (root, "", "")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"


def _behind(error: BaseException) -> BaseException:
    """What really happened: fsspec's HTTP says of every failed request that the file is not there."""
    aiohttp = sys.modules.get("aiohttp")
    known = (ValueError, asyncio.TimeoutError, *([aiohttp.ClientError] if aiohttp else []))
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    return cause if isinstance(cause, known) else error


def _without_credentials() -> type[BaseException]:
    """What botocore raises where no credentials were found: no request was made, and another one would not be."""
    botocore = sys.modules.get("botocore.exceptions")
    return botocore.NoCredentialsError if botocore else PermissionError


def _transient() -> tuple[type[BaseException], ...]:
    """What a failing server raises, through the client libraries that are loaded."""
    kinds: list[type[BaseException]] = [OSError, EOFError, asyncio.TimeoutError]
    if aiohttp := sys.modules.get("aiohttp"):
        kinds.append(aiohttp.ClientError)
    if botocore := sys.modules.get("botocore.exceptions"):
        kinds += [botocore.BotoCoreError, botocore.ClientError]
    return tuple(kinds)
