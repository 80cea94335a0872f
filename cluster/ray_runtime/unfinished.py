"""How a command of a cluster ends that was asked to stop, or that had no room for too long."""

from collections.abc import Callable

from cluster.ray_runtime.patience import Unavailable
from cluster.ray_runtime.stopping import StopRequests, stop_requests
from dmd.exit_codes import LOST, STOPPED


def run_to_end(work: Callable[[StopRequests], int], what_is_there: Callable[[], str]) -> int:
    """Run a command to its end; returns its exit code.

    Args:
        work: the command; returns the exit code.
        what_is_there: where it does not come to its end, what there is of it and how to go on, for its last line.
    """
    with stop_requests() as stop:
        try:
            return work(stop)
        except KeyboardInterrupt:
            why, code = "stopped on request", STOPPED
        except Unavailable as error:
            why, code = str(error), LOST
    print(f"{why}; {what_is_there()}")
    return code
