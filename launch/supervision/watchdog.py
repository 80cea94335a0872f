"""Notices a rank that hangs: without a heartbeat in time it dumps the stacks of all its threads.

The timer is a C thread of faulthandler's, so it works where the rank is stuck outside Python, or holds the GIL.
"""

import faulthandler

START_SECONDS = 900.0
"""Time for what a rank imports before it knows its config: on a busy network file system that takes minutes."""
JOIN_MARGIN = 60.0
"""How much longer the watchdog waits than what it watches has to end by itself."""


class Watchdog:
    """A timer that every heartbeat sets back; call it for one.

    Args:
        seconds: time between two heartbeats, at most.
        stacks: file descriptor that gets the stacks (`launch.supervision.supervise` prints them), of a crash as well.
    """

    def __init__(self, seconds: float, stacks: int) -> None:
        self._seconds, self._stacks = seconds, stacks
        faulthandler.enable(stacks)

    def __call__(self) -> None:
        """Set the timer back."""
        self.allow(self._seconds)

    def allow(self, seconds: float) -> None:
        """Set the timer back to another time, once: until the next heartbeat."""
        faulthandler.dump_traceback_later(seconds, file=self._stacks)

    def close(self) -> None:
        """Stop the timer."""
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
