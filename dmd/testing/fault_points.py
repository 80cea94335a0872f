"""Fault points: places where a test stops a process as a power cut, a deadlock or a scheduler would.

`DMD_FAULT=[ACTION:]NAME@COUNT[@RANK]` acts on the process that reaches the fault point NAME for the COUNT-th time (on
the rank whose RANK is given, or on any). ACTION is `kill` (the default: SIGKILL), `hang` (this thread waits for ever),
`stop` (SIGTERM to the parent process, the rank's supervisor), or the name of an error to raise (ERRORS). Without the
variable a fault point does nothing.
"""

import errno
import os
import signal
import threading
from collections import Counter

ERRORS: dict[str, Exception] = {
    "mistake": ValueError("a mistake of the user's"),
    "storage": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    "memory": MemoryError("no room for 7 bytes"),
    "bug": RuntimeError("a socket of our own timed out: connection reset"),
}
"""What stands for the errors that one rank alone may meet."""
ACTIONS = ("kill", "hang", "stop", *ERRORS)

_reached: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Act here if the environment says so. Raises ERRORS, and ValueError for a `DMD_FAULT` of another form."""
    order = os.environ.get("DMD_FAULT")
    if not order:
        return
    action, wanted, count, rank = _parse(order)
    if wanted != name or rank not in (None, int(os.environ.get("RANK", "0"))):
        return
    _reached[name] += 1
    if _reached[name] != count:
        return
    if action == "hang":
        threading.Event().wait()
    elif action == "stop":
        os.kill(os.getppid(), signal.SIGTERM)
    elif action in ERRORS:
        raise ERRORS[action]
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def _parse(order: str) -> tuple[str, str, int, int | None]:
    action, colon, place = order.rpartition(":")
    name, *numbers = place.split("@")
    known = not colon or action in ACTIONS
    if not known or not name or len(numbers) not in (1, 2) or not all(number.isdecimal() for number in numbers):
        raise ValueError(
            f"DMD_FAULT={order!r} is not NAME@COUNT or NAME@COUNT@RANK, with {', '.join(ACTIONS)} and a colon before "
            "it or not; unset it outside tests"
        )
    return action or "kill", name, int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else None
