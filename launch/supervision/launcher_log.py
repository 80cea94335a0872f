"""What libraries print on the ranks of a training: in a log of the run, not among the lines of this program.

    RUN/launcher.log    of the first host of a hostfile, or of the only one
    RUN/launcher-1.log  of the second host, ...
    RUN/launcher-ssh.log  of pdsh and the launchers that it starts, without their ranks

In a rank the descriptors 1 and 2 are that log, to which NCCL, C++ and subprocesses write; Python's `sys.stdout` and
`sys.stderr` stay what they were, except in a block of `library_output`. Python's warnings and what libraries log go to
the log, too. Each start appends a header. Where the log cannot be opened, or its name is that of a link or a pipe,
everything goes to the screen. `dmd train` shows the end of the log where a rank has failed. Without `dmd train` there
is no such log.
"""

import io
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import TextIO

from data_shards.durable import APPENDING, open_regular
from dmd.streams import LastingFile

LOG = "DMD_LAUNCHER_LOG"
"""Environment variable: the run directory, where ranks keep such a log."""
SSH_LOG = "launcher-ssh.log"
LOGS = "launcher*.log"
"""Pattern of all of them."""
_HOST = "CROSS_RANK"
"""Environment variable of DeepSpeed's launcher: number of this host in the hostfile."""
_FLOORS = ("data_shards", "dmd", "launch", "cluster")
"""Packages of this program, whose warnings are for the screen."""
_TAIL_LINES, _TAIL_BYTES = 30, 1 << 14
_STDERR = 2


def log_path(run: Path, host: int) -> Path:
    """The log of a host of a run."""
    return run / ("launcher.log" if host == 0 else f"launcher-{host}.log")


def open_log(environment: Mapping[str, str], *, host: int | None = None) -> int | None:
    """A descriptor that appends to this host's log; None: there is none, or it cannot be opened.

    The first host makes the run directory. Others have it already, or their --run is not the first one's.

    Args:
        host: its number; None: that of the environment.
    """
    run = environment.get(LOG)
    if run is None:
        return None
    host = int(environment.get(_HOST, "0")) if host is None else host
    with suppress(OSError, ValueError):
        if host == 0:
            Path(run).mkdir(parents=True, exist_ok=True)
        return open_regular(log_path(Path(run), host), APPENDING)
    return None


class LogWriter:
    """Appends to the log of a host, which is opened for the first text. What it cannot take goes to stderr, and what
    stderr cannot take is lost: a full disk or a terminal that is gone ends neither a supervisor nor the launcher.

    Args:
        host: as of `open_log`.
    """

    def __init__(self, host: int | None = None) -> None:
        self._host = host
        self._targets: list[int] = []

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if not self._targets:
            log = open_log(os.environ, host=self._host)
            self._targets = [_STDERR] if log is None else [log, _STDERR]
        for target in self._targets:
            with suppress(OSError):
                while data:
                    data = data[os.write(target, data) :]


def divert_libraries(environment: Mapping[str, str]) -> None:
    """In a rank, before it imports anything large: what libraries print goes to the log."""
    log = open_log(environment)
    if log is None:
        return
    told = "standard output has no reader any more; the training goes on" if environment.get("RANK") == "0" else ""
    sys.stdout, sys.stderr = _copy(sys.stdout, told), _copy(sys.stderr)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if environment.get("LOCAL_RANK", "0") == "0":
        ranks = environment.get("LOCAL_SIZE", "1")
        with suppress(OSError):  # a disk that is full is told by what needs it
            os.write(1, f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} start of {ranks} ranks on this host\n".encode())
    logging.basicConfig(stream=sys.__stderr__, format="%(asctime)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # as above
    for floor in _FLOORS:
        logger = logging.getLogger(floor)
        logger.propagate = False
        if logging.lastResort is not None:
            logger.addHandler(logging.lastResort)


class _Screen(io.TextIOWrapper):
    """A stream to what a descriptor was before it became that of the log."""


def _copy(stream: TextIO, told: str = "") -> TextIO:
    copy = LastingFile(os.dup(stream.fileno()), told=told)
    return _Screen(copy, encoding=stream.encoding, errors=stream.errors, write_through=True)


@contextmanager
def library_output() -> Iterator[None]:
    """A block in which Python's own streams are those of libraries: for what prints, or keeps a stream to log to."""
    if not isinstance(sys.stdout, _Screen):  # nothing was diverted
        yield
        return
    with redirect_stdout(sys.__stdout__), redirect_stderr(sys.__stderr__):
        yield


class LogTail:
    """What a start adds to the logs of a run, as `dmd train` shows it."""

    def __init__(self, run: Path, hosts: range) -> None:
        paths = [*(log_path(run, host) for host in hosts), run / SSH_LOG]
        self._sizes = {path: _size(path) for path in paths}

    def text(self) -> str:
        """The last lines of each log that has more than its header."""
        return "".join(self._of(path, before) for path, before in self._sizes.items())

    def _of(self, path: Path, before: int) -> str:
        try:
            with open(open_regular(path, os.O_RDONLY), "rb") as file:
                file.seek(max(before, _size(path) - _TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except (OSError, ValueError):
            return ""
        lines = [line for line in lines if line.strip() and not line.startswith("--- ")]
        if not lines:
            return ""
        return "".join(f"{line}\n" for line in [f"what libraries said last, of {path}:", *lines[-_TAIL_LINES:]])


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
