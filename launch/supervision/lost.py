"""Distinguishes a rank that lost the other ranks from one that failed by itself, by the errors of torch.

gloo raises an exception in the thread that waits. Under NCCL that thread waits for a stream, and a thread of torch's,
the watchdog of ProcessGroupNCCL, writes a reason to stderr and aborts the process. A device-side assert ends in the
same abort. So a rank of several on NCCL redirects its stderr through its supervisor, which looks for that reason.
"""

import os
import re
import sys

from launch.supervision.launcher_log import LogWriter

_OF_COLLECTIVES = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|broken pipe|socket", re.I)
_OF_THIS_RANK = re.compile(r"cuda (error|failure)|ncclInvalid(Usage|Argument)|invalid usage|out of memory", re.I)
"""The rank's own device, or a misuse such as two ranks on one GPU: the same command would fail again."""
_OF_WATCHDOG = re.compile(
    r"(Watchdog caught collective operation timeout: .*)"
    r"|watchdog thread terminated with exception: (?:\[Rank \d+\] )?(.*)"
    r"|(Terminating the process after attempting to dump debug info, due to collective timeout.*)"
)
WAITING = (
    "torch.distributed.",
    "deepspeed.comm.",
    "deepspeed.runtime.zero.",
    "deepspeed.utils.nvtx",  # its decorator, around a wait of ZeRO 3
    "launch.trainer.reduction",
)
"""How the names of modules begin that wait for collectives."""
_READ_BYTES = 1 << 16
"""How much one read takes at most: what a pipe holds."""
_LINE_BYTES = 1 << 12
"""How much of the end of an unfinished line is kept to be searched."""


def lost_peers(error: RuntimeError) -> bool:
    """Whether an error says that other ranks are gone or cannot be reached.

    torch's own errors of collectives have a type. gloo's are of class RuntimeError, as are other modules' errors about
    sockets and timeouts, so they count only where a collective raised them.
    """
    import torch
    from torch.distributed import DistError

    if isinstance(error, torch.OutOfMemoryError | torch.AcceleratorError) or _OF_THIS_RANK.search(str(error)):
        return False
    of_gloo = _in_a_collective(error) and _OF_COLLECTIVES.search(str(error)) is not None
    return isinstance(error, DistError) or of_gloo


def _in_a_collective(error: RuntimeError) -> bool:
    """Whether the innermost Python that raised an error is that of collectives: torch's, DeepSpeed's, or our own, which
    wait for those that they have started."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = "" if frame is None else frame.tb_frame.f_globals.get("__name__", "")
    return module.startswith(WAITING)


def nccl_abort_reason(line: str) -> str | None:
    """Why torch's NCCL watchdog aborts, if a line of stderr says so; None for any other line."""
    match = _OF_WATCHDOG.search(line)
    if match is None or _OF_THIS_RANK.search(line):
        return None
    return next(group for group in match.groups() if group is not None).strip()


class StderrRelay:
    """Forwards a rank's stderr through its supervisor, and finds in it why torch's watchdog aborts."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        os.set_blocking(self.reader, False)
        self._line = b""
        """The part of a line that has come so far."""
        self._log = LogWriter()
        self.reason: str | None = None
        """Why torch's watchdog aborts; None as long as it has not said so."""

    def redirect_stderr(self) -> None:
        """In the rank: stderr goes through the supervisor from here on."""
        sys.stderr.flush()
        os.dup2(self._writer, 2)

    def close_writer(self) -> None:
        """In the supervisor: keep only the reading end."""
        os.close(self._writer)

    def forward(self) -> bool:
        """Forward what has come; returns whether more may come."""
        while True:
            try:
                data = os.read(self.reader, _READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._scan(data)
            self._log.write(data)

    def finish(self) -> None:
        """The same for the last time: the rank has ended."""
        self.forward()
        self._scan(b"\n")

    def _scan(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-_LINE_BYTES:]
        for line in lines:
            self.reason = self.reason or nccl_abort_reason(line.decode(errors="replace"))
