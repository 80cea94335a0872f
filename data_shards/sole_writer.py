"""One writer per directory: a run, an experiment, a report, an export, a set of shards.

    with sole_writer(Path("RUN")) as lease:
        ...
        lease.check()    # None, or who has taken the directory over

The lease is a file DIR/.writer that names host, process and start time. Two things protect it:

- a lock of the kernel (flock), which ends with its process. A network file system may share it with other hosts (NFS 4,
  Lustre with `flock`, GPFS), or not (NFS with `nolock`, Lustre with `localflock`);
- its modification time, which a thread of the holder renews. A holder on another host counts as dead when the time has
  not changed for `LEASE_SECONDS`, by the clock of the process that watches it.

So a second writer is rejected at once where locks are shared, and after watching the lease where they are not. A
process that takes a directory over writes a new lease. The previous holder, if it is alive, notices that in `check`.
The same happens where a user removes the lease of a host that is gone for good.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from data_shards.durable import is_same_file, open_regular

LEASE_FILE = ".writer"
RENEW_SECONDS = 5.0
LEASE_SECONDS = 20.0
"""How long the lease of another host must be unchanged until its holder counts as dead."""
_SEEN_SECONDS = 60.0
"""How old the last sign of life of a holder on another host may be, by the clocks of both, for whoever only looks."""
_DYING_SECONDS = 5.0
"""How long to wait for a lock whose holder is ending, or has not yet written its lease."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class DirectoryInUse(ValueError):
    """Another process writes to the directory."""


class Lock(Enum):
    """What an attempt to lock a file found."""

    OURS = "ours"
    TAKEN = "taken"
    UNSUPPORTED = "unsupported"
    """The file system has no locks."""


@dataclass(frozen=True, kw_only=True)
class _Claim:
    """What a lease says of its holder."""

    host: str
    process: str
    boot: str
    """Names the kernel that the process runs on, from its start to its end."""
    token: str
    """Unique."""
    started: str
    group: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} (since {self.started})"


class Lease:
    """The right to write to a directory, as `acquire` returns it."""

    def __init__(self, path: Path, handle: int, token: str, created: list[Path]) -> None:
        """Renew a lease from now on.

        Args:
            handle: descriptor of the file; its lock is held where the file system has locks.
            created: directories that were made for it, innermost first.
        """
        self.handle = handle
        self.token = token
        self._path = path
        self._created = created
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {path}", daemon=True)
        self._thread.start()

    def check(self) -> str | None:
        """Why this process may not write any more: another one has taken the directory over. None while it may, and
        while the directory cannot be read."""
        holder = _read(self._path)
        if holder is None or holder.token == self.token:
            return None
        return f"{self._path.parent} was taken over by {holder}; this one ends"

    def release(self) -> None:
        """End the right to write, and remove those directories that were made for it and are empty."""
        if self._released.is_set():
            return
        self._released.set()
        self._thread.join()
        with suppress(OSError):
            if is_same_file(self.handle, self._path):
                self._path.unlink()
        os.close(self.handle)
        for directory in self._created:
            with suppress(OSError):
                directory.rmdir()

    def _renew(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            with suppress(OSError):
                os.utime(self.handle)


@contextmanager
def sole_writer(directory: Path, *, group: str = "") -> Iterator[Lease]:
    """Hold the right to write to a directory, which is made if it is missing. See `acquire`."""
    lease = acquire(directory, group=group)
    try:
        yield lease
    finally:
        lease.release()


def acquire(directory: Path, *, group: str = "") -> Lease:
    """Take the right to write to a directory, which is made if it is missing.

    Args:
        group: a holder of the same group is replaced, even if it is alive. Writers of a group, such as the restarts of
            one trial, are started one after the other, and the latest one is right.

    Raises:
        DirectoryInUse: another process writes there; the message names it.
        ValueError: something else than a file is in the lease's place.
        OSError: the directory cannot be made or written to.
    """
    path = directory / LEASE_FILE
    created = [parent for parent in (directory, *directory.absolute().parents) if not parent.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _DYING_SECONDS
    while True:
        handle = open_regular(path)
        claim = None
        try:
            claim = _try_to_claim(path, handle, group, deadline=deadline)
        finally:
            if claim is None:
                os.close(handle)
        if claim is not None:
            return Lease(path, handle, claim.token, created)
        time.sleep(0.1)


def _try_to_claim(path: Path, handle: int, group: str, *, deadline: float) -> _Claim | None:
    """Claim an open lease, if it is free; None where a new attempt is needed.

    Raises:
        DirectoryInUse: it is not free, and will not be before the deadline.
    """
    lock = try_to_lock(handle)
    holder = _parse(os.pread(handle, 1 << 14, 0))
    is_replaced = bool(group) and holder is not None and holder.group == group
    if lock is Lock.TAKEN and not is_replaced:
        may_end = holder is None or _is_dying(holder)
        if not may_end or time.monotonic() > deadline:
            raise DirectoryInUse(_in_use(path.parent, holder))
        return None
    if not is_same_file(handle, path):
        return None  # its previous holder removed the file between our open and our lock
    if is_replaced:
        path.unlink(missing_ok=True)  # the next attempt makes a new file, in which the holder finds another token
        return None
    ended_here = holder is not None and lock is Lock.OURS and holder.boot == _boot()
    if holder is not None and not ended_here and not _is_dead(path, holder):
        raise DirectoryInUse(_in_use(path.parent, holder))
    claim = _write_claim(handle, group)
    return claim if lock is Lock.OURS or _survives(path, claim) else None


def is_held(directory: Path) -> bool:
    """Whether a living process holds the right to write to a directory; neither takes it nor waits.

    Of a holder on this machine the kernel's lock says it. Of one on another host the age of its last renewal does, so
    that it counts as alive for a minute after its death.

    Raises:
        OSError: the lease cannot be read.
    """
    try:
        handle = os.open(directory / LEASE_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        holder = _parse(os.pread(handle, 1 << 14, 0))
        if holder is not None and holder.boot == _boot():
            lock = try_to_lock(handle, shared=True)
            if lock is not Lock.UNSUPPORTED:
                return lock is Lock.TAKEN
        return time.time() - os.fstat(handle).st_mtime < _SEEN_SECONDS
    finally:
        os.close(handle)


def read_token(directory: Path) -> str | None:
    """The token of the lease on a directory; None where none can be read."""
    claim = _read(directory / LEASE_FILE)
    return None if claim is None else claim.token


def try_to_lock(handle: int, *, shared: bool = False) -> Lock:
    """Lock an open file until it is closed, without waiting. Raises OSError where the storage fails."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return Lock.TAKEN
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return Lock.UNSUPPORTED
    return Lock.OURS


def _is_dying(holder: _Claim) -> bool:
    """Whether the holder is a process of this kernel that has ended, but for files that are still open."""
    if holder.boot != _boot():
        return False
    try:
        state = Path(f"/proc/{holder.process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def _write_claim(handle: int, group: str) -> _Claim:
    """Write this process into a lease."""
    claim = _Claim(
        host=socket.gethostname(),
        process=str(os.getpid()),
        boot=_boot(),
        token=uuid.uuid4().hex,
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        group=group,
    )
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(asdict(claim)).encode(), 0)
    os.fsync(handle)
    return claim


def _survives(path: Path, claim: _Claim) -> bool:
    """Whether a claim without a lock is still there after a second, in which others may have written theirs."""
    time.sleep(1)
    return (_read(path) or claim).token == claim.token


def _is_dead(path: Path, holder: _Claim) -> bool:
    """Watch a lease that no lock protects here; whether it stays unchanged."""
    print(
        f"waiting {LEASE_SECONDS:.0f} s to see whether {holder} still writes to {path.parent}",
        file=sys.stderr,
        flush=True,
    )
    before, end = _state(path), time.monotonic() + LEASE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, LEASE_SECONDS / 4))
        if _state(path) != before:
            return False
    return True


def _state(path: Path) -> tuple[int, bytes] | None:
    """Time and content of a lease, which change while its holder lives. The file is opened each time, so that a network
    file system asks its server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return None


def _read(path: Path) -> _Claim | None:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _parse(content: bytes) -> _Claim | None:
    """The claim in a lease; None for an empty one, or an incomplete one, whose writer died."""
    try:
        values: Any = json.loads(content)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    return _Claim(**{field.name: str(values.get(field.name, "")) for field in fields(_Claim)})


def _in_use(directory: Path, holder: _Claim | None) -> str:
    lease = directory / LEASE_FILE
    return (
        f"{directory} is being written by {holder or 'another process'}; wait for it or stop it (if its host is gone "
        f"for good, remove {lease})"
    )


def _boot() -> str:
    """Names this kernel from its start to its end; between its processes the kernel's lock decides."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()
