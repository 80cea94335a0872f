"""A request to stop, by Ctrl-C or SIGTERM: the command says how far it is and ends with exit code 75."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dmd.exit_codes import STOPPED

_SAME_REQUEST_SECONDS = 3
"""One request may be delivered several times: to the process, to its group, by its parent."""
_LONGEST_END_SECONDS = 60
"""Time for Ray to let go of the cluster; it has none where the same signal has ended Ray's own processes."""
_OUTLOOK = "the same command continues"


class StopRequests:
    """Turns SIGINT and SIGTERM into KeyboardInterrupt in the main thread, once per request."""

    def __init__(self, longest_end: float = _LONGEST_END_SECONDS, outlook: str = _OUTLOOK) -> None:
        """Listen to nothing yet.

        Args:
            longest_end: seconds from the first request to the end of this process, whatever it waits for.
            outlook: what the command says where it takes longer: what it leaves, and how to go on.
        """
        self._last: float | None = None
        self._longest_end = longest_end
        self._outlook = outlook

    def listen(self) -> None:
        """Take the signals. Ray and Ray Tune take them for themselves when they start; call it again after that."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now, before = time.monotonic(), self._last
        self._last = now
        if before is None:
            end = threading.Timer(self._longest_end, _give_up, (self._longest_end, self._outlook))
            end.daemon = True
            end.start()
        elif now - before < _SAME_REQUEST_SECONDS:
            return
        raise KeyboardInterrupt


def _give_up(seconds: float, outlook: str) -> None:
    print(f"the command has not ended within {seconds:g} s of the request to stop; {outlook}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(STOPPED)


@contextmanager
def stop_requests(*, longest_end: float = _LONGEST_END_SECONDS, outlook: str = _OUTLOOK) -> Iterator[StopRequests]:
    """Both signals as KeyboardInterrupt within the block (`StopRequests`)."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    requests = StopRequests(longest_end, outlook)
    requests.listen()
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
