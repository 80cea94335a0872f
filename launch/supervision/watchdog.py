"""Detects a rank that hangs: without a heartbeat in time it dumps the stacks of all threads.

The timer is a C thread of faulthandler's, so it works where the rank is stuck outside Python, or holds the GIL.
"""

import faulthandler

START_SECONDS = 900.0
"""Time for what a rank imports before it knows its config: on a busy network file system that takes minutes."""
JOIN_MARGIN = 60.0
"""How much longer the watchdog waits than the timeouts of joining, which end the rank by themselves."""


class Watchdog:
    """A timer that every heartbeat resets; calling it is a heartbeat.

    Args:
        seconds: the longest time between two heartbeats.
        stacks: file descriptor for the stacks, also of a crash; `launch.supervision.supervise` prints them.
    """

    def __init__(self, seconds: float, stacks: int) -> None:
        self._seconds = seconds
        self._stacks = stacks
        faulthandler.enable(stacks)

    def __call__(self) -> None:
        """Reset the timer."""
        self.allow(self._seconds)

    def allow(self, seconds: float) -> None:
        """Reset the timer to another time, until the next heartbeat."""
        faulthandler.dump_traceback_later(seconds, file=self._stacks)

    def close(self) -> None:
        """Stop the timer."""
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
