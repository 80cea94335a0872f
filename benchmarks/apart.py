"""A piece of work in a forked process with a time limit: a crash, a hang, a broken CUDA context stay its own.

The process that forks must not have touched CUDA: a fork cannot use its parent's context.
"""

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable

import torch

LONGEST_REASON = 300
"""Characters of an exception that a table gets."""


class Apart:
    """Starts the work; `reason` waits for it."""

    def __init__(self, work: Callable[[], None]) -> None:
        assert not torch.cuda.is_initialized(), "a fork cannot use CUDA when its parent has"
        context = multiprocessing.get_context("fork")
        self._reader, writer = context.Pipe(duplex=False)
        self._process = context.Process(target=_run, args=(work, writer))
        self._process.start()
        writer.close()
        self._began = time.monotonic()

    def reason(self, seconds: float) -> str:
        """Why it did not end well within `seconds` of its start; empty if it did."""
        self._process.join(max(0, self._began + seconds - time.monotonic()))
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)
            return f"cut off after {seconds:.0f} s"
        code = self._process.exitcode
        if code == 0:
            return ""
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        try:
            return str(self._reader.recv()) if self._reader.poll() else f"exit code {code}"
        except EOFError:
            return f"exit code {code}"


def _run(work: Callable[[], None], writer: "multiprocessing.connection.Connection") -> None:  # type: ignore[name-defined]
    try:
        work()
    except Exception as error:  # the parent gets it, whatever it is
        traceback.print_exc()
        writer.send(one_line(error))
        sys.exit(1)


def one_line(error: BaseException) -> str:
    """An exception as one short line: its beginning and its end."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON // 2]} ... {text[-LONGEST_REASON // 2 :]}"
