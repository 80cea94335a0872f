"""Detects a rank that hangs: without a heartbeat in time it dumps the stacks of all threads.

The timer is a C thread of faulthandler's, so it works where the rank is stuck outside Python, or holds the GIL.
"""

import faulthandler

from launch.supervision.channels import Channels

START_SECONDS = 900.0
"""Time for what a rank imports before it knows its config: on a busy network file system that takes minutes."""
JOIN_MARGIN = 60.0
"""How much longer the watchdog waits than the timeouts of joining, which end the rank by themselves."""


class Watchdog:
    """A timer that every heartbeat resets; calling it is a heartbeat.

    Args:
        seconds: the longest time between two heartbeats.
        channels: they take the stacks, also of a crash, and count heartbeats, for the supervisor.
    """

    def __init__(self, seconds: float, channels: Channels) -> None:
        self._seconds = seconds
        self._channels = channels
        faulthandler.enable(channels.stacks)

    def __call__(self) -> None:
        """Reset the timer."""
        self._channels.count_heartbeat()
        self.allow(self._seconds)

    def allow(self, seconds: float) -> None:
        """Reset the timer to another time, until the next heartbeat."""
        faulthandler.dump_traceback_later(seconds, file=self._channels.stacks)

    def close(self) -> None:
        """Stop the timer."""
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
