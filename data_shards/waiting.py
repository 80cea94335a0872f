"""Says what a command waits for, where that takes longer than some seconds."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from data_shards.terminal import clear

FIRST_SECONDS = 5.0
"""A wait that is shorter is not told."""


@contextmanager
def waiting(what: str, *, shown: bool = True, after: float = FIRST_SECONDS) -> Iterator[None]:
    """In this block the process waits for `what`: after some seconds a line of stderr says so, then at intervals that
    double.

    Args:
        shown: whether anything is said; of several ranks one is enough.
        after: seconds to the first line.
    """
    if not shown:
        yield
        return
    done = threading.Event()
    stream = sys.stderr

    def tell() -> None:
        begin, passed = time.monotonic(), after
        while not done.wait(begin + passed - time.monotonic()):
            print(f"{clear(stream)}waiting for {what} ({passed:.0f} s)\n", end="", file=stream, flush=True)
            passed *= 2

    thread = threading.Thread(target=tell, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
