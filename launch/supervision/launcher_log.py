"""What libraries print on the ranks of a training: in a log of the run, not among the lines of this program.

    RUN/launcher.log    of the first host of a hostfile, or of the only one
    RUN/launcher-1.log  of the second host, ...
    RUN/launcher-ssh.log  of pdsh and the launchers that it starts, without their ranks

In a rank the descriptors 1 and 2 are that log, to which NCCL, C++ and subprocesses write; Python's `sys.stdout` and
`sys.stderr` stay what they were, except in a block of `library_output`. Python's warnings and what libraries log go to
the log, too. Each start appends a header. Where the log cannot be written, everything goes to the screen. `dmd train`
shows the end of the log where a rank has failed. Without `dmd train` there is no such log.
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

LOG = "DMD_LAUNCHER_LOG"
"""Environment variable: the run directory, where ranks keep such a log."""
SSH_LOG = "launcher-ssh.log"
_HOST = "CROSS_RANK"
"""Environment variable of DeepSpeed's launcher: number of this host in the hostfile."""
_FLOORS = ("data_shards", "dmd", "launch", "cluster")
"""Packages of this program, whose warnings are for the screen."""
_TAIL_LINES, _TAIL_BYTES = 30, 1 << 14


def log_path(run: Path, host: int) -> Path:
    """The log of a host of a run."""
    return run / ("launcher.log" if host == 0 else f"launcher-{host}.log")


def open_log(environment: Mapping[str, str], *, host: int | None = None) -> int | None:
    """A descriptor that appends to this host's log; None: there is none, or it cannot be written.

    The first host makes the run directory. Others have it already, or their --run is not the first one's.

    Args:
        host: its number; None: that of the environment.
    """
    run = environment.get(LOG)
    if run is None:
        return None
    host = int(environment.get(_HOST, "0")) if host is None else host
    with suppress(OSError):
        if host == 0:
            Path(run).mkdir(parents=True, exist_ok=True)
        return os.open(log_path(Path(run), host), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    return None


def divert_libraries(environment: Mapping[str, str]) -> None:
    """In a rank, before it imports anything large: what libraries print goes to the log."""
    log = open_log(environment)
    if log is None:
        return
    sys.stdout, sys.stderr = _copy(sys.stdout), _copy(sys.stderr)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if environment.get("LOCAL_RANK", "0") == "0":
        ranks = environment.get("LOCAL_SIZE", "1")
        os.write(1, f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} start of {ranks} ranks on this host\n".encode())
    logging.basicConfig(stream=sys.__stderr__, format="%(asctime)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a disk that is full is told by what needs it
    for floor in _FLOORS:
        logger = logging.getLogger(floor)
        logger.propagate = False
        if logging.lastResort is not None:
            logger.addHandler(logging.lastResort)


class _Screen(io.TextIOWrapper):
    """A stream to what a descriptor was before it became that of the log."""


def _copy(stream: TextIO) -> TextIO:
    copy = os.fdopen(os.dup(stream.fileno()), "wb", buffering=0)
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
            with path.open("rb") as file:
                file.seek(max(before, _size(path) - _TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
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
