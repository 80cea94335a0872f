"""Notices a rank that hangs: without a sign of life in time it dumps the stacks of all its threads.

The timer is a C thread of faulthandler's, so it works where the rank is stuck outside Python, or holds the GIL.
"""

import faulthandler


class Watchdog:
    """A timer that every sign of life sets back; call it for one.

    Args:
        seconds: time between two signs of life, at most.
        stacks: file descriptor that gets the stacks (`launch.supervise` prints them), of a crash as well.
    """

    def __init__(self, seconds: float, stacks: int) -> None:
        self._seconds, self._stacks = seconds, stacks
        faulthandler.enable(stacks)

    def __call__(self) -> None:
        """Set the timer back."""
        faulthandler.dump_traceback_later(self._seconds, file=self._stacks)

    def close(self) -> None:
        """Stop the timer."""
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
