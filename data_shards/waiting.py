"""Says what a command waits for, where that takes longer than some seconds."""

import itertools
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from data_shards.terminal import clear

FIRST_SECONDS = 5.0
"""A wait that is shorter is not told."""


def moments(first: float) -> Iterator[float]:
    """Seconds after which a wait is told, without end."""
    return (first * 2**number for number in itertools.count())


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
        begin = time.monotonic()
        for passed in moments(after):
            if done.wait(begin + passed - time.monotonic()):
                return
            print(f"{clear(stream)}waiting for {what} ({passed:.0f} s)\n", end="", file=stream, flush=True)

    thread = threading.Thread(target=tell, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
