"""Fault points: places where a test kills the process, as a power cut or the kernel would.

`DMD_FAULT=NAME@COUNT[@RANK]` sends SIGKILL to the process when it reaches the fault point NAME for the COUNT-th time
(on the rank whose RANK is given, or on any). Without the variable a fault point does nothing.
"""

import os
import signal
from collections import Counter

_reached: Counter[str] = Counter()


def fault_point(name: str) -> None:
    """Die here if the environment says so. Raises ValueError for a `DMD_FAULT` of another form."""
    order = os.environ.get("DMD_FAULT")
    if not order:
        return
    wanted, count, rank = _parse(order)
    if wanted != name or rank not in (None, int(os.environ.get("RANK", "0"))):
        return
    _reached[name] += 1
    if _reached[name] == count:
        os.kill(os.getpid(), signal.SIGKILL)


def _parse(order: str) -> tuple[str, int, int | None]:
    name, *numbers = order.split("@")
    if not name or len(numbers) not in (1, 2) or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"DMD_FAULT={order!r} is not NAME@COUNT or NAME@COUNT@RANK; unset it outside tests")
    return name, int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else None
