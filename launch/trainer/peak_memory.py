"""The most host memory that this process has held, by Linux's own count."""

import ctypes
import re
from contextlib import suppress
from pathlib import Path

_RESET_PEAK = "5"
"""What /proc/self/clear_refs takes for it."""


def peak_bytes() -> int:
    """The most memory that this process has held since the last reset."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> None:
    """Give free memory back and count anew; where the system does not let a process do so, the count goes on."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
