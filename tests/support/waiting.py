"""Waiting for what other processes do."""

import time
from collections.abc import Callable


def until(true: Callable[[], object], what: Callable[[], str], *, seconds: float = 240) -> None:
    """Poll for something that must come to be; after so many seconds the test fails and says `what`."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)
