"""Ends a process and everything that it has started, in whatever group or session. Needs nothing but Python."""

import ctypes
import os
import signal
import subprocess
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
INTERRUPT_SECONDS, KILL_SECONDS = 4, 5


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parents end, so that it can find them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_all(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a stage that still runs (so that pytest reports results), then kill all that descends from here."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        _wait(process, INTERRUPT_SECONDS)
    deadline = time.monotonic() + KILL_SECONDS
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for number in left:
            try:
                os.kill(number, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _wait(process, 0.2)
        for number in left:
            if number != process.pid:  # the others were given to this process when their parents died
                try:
                    os.waitpid(number, os.WNOHANG)
                except ChildProcessError:
                    continue


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def descendants(ancestor: int) -> list[int]:
    """Processes below one, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        try:
            stat = (entry / "stat").read_text() if entry.name.isdigit() else ""
        except OSError:  # it has ended
            continue
        if stat:
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, todo = [], [ancestor]
    while todo:
        own = children.get(todo.pop(), [])
        found += own
        todo += own
    return found
