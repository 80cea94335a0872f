"""One writer per directory: a run, an experiment, a report, an export, a set of shards.

    with sole_writer(Path("RUN")) as lease:
        ...
        lease.check()    # None, or who has taken the directory over

The lease is a file DIR/.writer that says host, process and start time. Two things hold it:

- a lock of the kernel (flock) on it, which ends with its holder, however that dies. A network file system may carry it
  to other hosts (NFS 4, Lustre with `flock`, GPFS), or not (NFS with `nolock`, Lustre with `localflock`);
- its modification time, which a thread renews. A holder on another host counts as dead when it has not moved for
  `LEASE_SECONDS`, by the clock of the one who watches.

So a second writer is refused at once where the lock reaches, and after a look at the lease where it does not. Who takes
a directory over writes a new lease; the former holder, should it still live, sees that by `check`. The same happens
where a user removes the file of a host that is gone for good.
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
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from data_shards.durable import is_at, open_plain

NAME = ".writer"
RENEW_SECONDS = 5.0
LEASE_SECONDS = 20.0
"""How long the lease of another host must not have moved until its holder counts as dead."""
_DYING_SECONDS = 5.0
"""How long a lock is asked for whose holder is on its way out, or has not yet said who it is."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Held(ValueError):
    """Another process writes to the directory."""


class Lease:
    """The right to write to a directory; `acquire` gives it."""

    def __init__(self, path: Path, handle: int, claim: dict[str, str], made: list[Path]) -> None:
        self.handle, self.token = handle, claim["token"]
        self._path, self._made = path, made
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name=f"lease {path}", daemon=True)
        self._thread.start()

    def check(self) -> str | None:
        """Why this process may not write any more: someone else has taken the directory over. None while it may, also
        while the directory cannot be seen."""
        other = _read(self._path)
        if other is None or other["token"] == self.token:
            return None
        return f"{self._path.parent} was taken over by {_who(other)}; this one ends"

    def release(self) -> None:
        """Give the directory back, and remove what was made for it if nothing has come into it."""
        if self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            if is_at(self.handle, self._path):
                self._path.unlink()
        os.close(self.handle)
        for directory in self._made:
            with suppress(OSError):
                directory.rmdir()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
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
        group: a holder of the same group is not asked: whoever starts the writers of a group sees to it that the latest
            one is right, such as the restarts of one trial.

    Raises:
        Held: another process writes there; says which.
        ValueError: something else than a file is in the lease's place.
        OSError: the directory cannot be made or written to.
    """
    path = directory / NAME
    made = [place for place in (directory, *directory.absolute().parents) if not place.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    patience = time.monotonic() + _DYING_SECONDS
    while True:
        handle = open_plain(path)
        try:
            locks = _lock(handle)
            holder = _parse(os.pread(handle, 1 << 14, 0))
            ours = bool(group) and holder is not None and holder["group"] == group
            if locks is False and not ours:
                if time.monotonic() > patience or not (holder is None or _is_dying(holder)):
                    raise Held(_busy(directory, holder))
            elif not is_at(handle, path):
                pass  # its former holder removed the file between our open and our lock
            elif ours:
                path.unlink(missing_ok=True)  # a new file: its holder, if it lives, finds another token there
            elif holder is None or (locks and holder["boot"] == _boot()) or _is_dead(path, holder):
                claim = _claim(handle, group)
                if locks or _stays(path, claim):
                    return Lease(path, handle, claim, made)
            else:
                raise Held(_busy(directory, holder))
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(0.1)


def read_token(directory: Path) -> str | None:
    """The token of the lease on a directory; None where there is none to be seen."""
    claim = _read(directory / NAME)
    return None if claim is None else claim["token"]


def _lock(handle: int) -> bool | None:
    """Whether the kernel's lock is ours; None where the file system has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _is_dying(holder: dict[str, str]) -> bool:
    """Whether a process of this kernel is gone, but for what it still holds."""
    if holder["boot"] != _boot():
        return False
    try:
        state = Path(f"/proc/{holder['process']}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def _claim(handle: int, group: str) -> dict[str, str]:
    """Write down who we are."""
    claim = {
        "host": socket.gethostname(),
        "process": str(os.getpid()),
        "boot": _boot(),
        "token": uuid.uuid4().hex,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "group": group,
    }
    os.ftruncate(handle, 0)
    os.pwrite(handle, json.dumps(claim).encode(), 0)
    os.fsync(handle)
    return claim


def _stays(path: Path, claim: dict[str, str]) -> bool:
    """Whether a claim that no lock protects is still there after a moment in which others may have made theirs."""
    time.sleep(1)
    return (_read(path) or claim)["token"] == claim["token"]


def _is_dead(path: Path, holder: dict[str, str]) -> bool:
    """Watch a lease that no lock of ours vouches for; whether it stops moving."""
    print(
        f"waiting {LEASE_SECONDS:.0f} s to see whether {_who(holder)} still writes to {path.parent}",
        file=sys.stderr,
        flush=True,
    )
    before, end = _mark(path), time.monotonic() + LEASE_SECONDS
    while time.monotonic() < end:
        time.sleep(min(1.0, LEASE_SECONDS / 4))
        if _mark(path) != before:
            return False
    return True


def _mark(path: Path) -> tuple[int, bytes] | None:
    """What moves while a holder lives. The file is opened anew, so that a network file system asks its server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns, file.read()
    except FileNotFoundError:
        return None


def _read(path: Path) -> dict[str, str] | None:
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


def _parse(content: bytes) -> dict[str, str] | None:
    """The claim in a lease; None for an empty one, or one that was torn by its writer's death."""
    try:
        claim: Any = json.loads(content)
    except ValueError:
        return None
    names = ("host", "process", "boot", "token", "started", "group")
    return {name: str(claim.get(name, "")) for name in names} if isinstance(claim, dict) else None


def _busy(directory: Path, holder: dict[str, str] | None) -> str:
    who = "another process" if holder is None else _who(holder)
    return (
        f"{directory} is being written by {who}; wait for it or stop it (if its host is gone for good, remove "
        f"{directory / NAME})"
    )


def _who(holder: dict[str, str]) -> str:
    return f"process {holder['process']} on {holder['host']} (since {holder['started']})"


def _boot() -> str:
    """Names this kernel from its start to its end; within it a lock of the kernel's is the whole truth."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()
