"""Waiting for what other processes do."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], what: Callable[[], str], *, seconds: float = 240) -> None:
    """Wait until a condition is true; after so many seconds the test fails with the text of `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)
