"""Each rank is two processes: one that trains, and its supervisor, which sees how it ends and what it is told.

The launcher loses the exit status of a rank that a signal killed, and tells nobody which rank it was (STACK.md B3).
The supervisor forks before anything heavy is imported, so it costs ten megabytes. It
- asks its rank to stop at the first SIGTERM or SIGINT and kills it at the second of the same kind; the death of the
  launcher or of `dmd train` (DMD_WRAPPER names its process) counts as a SIGTERM;
- reports rank, host and signal of a rank that a signal killed;
- prints the stack that a rank dumps when it hangs or crashes, and kills one that hangs (`launch.watchdog`);
- tells the end of a rank that lost its peers under NCCL from a crash (`launch.lost`).
A rank never outlives its supervisor.
"""

import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from launch.exit_codes import LOST, SIGNALLED
from launch.lost import ErrorRelay

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
ASK = signal.SIGUSR1
"""What a supervisor tells its rank: stop at the next step. SIGTERM and SIGINT may reach both of them at once."""
GRACE_SECONDS = 5.0
"""From the stack of a rank that hangs to its end."""
_PR_SET_PDEATHSIG = 1


class StopRequest:
    """Whether this rank has been asked to stop; call it at step boundaries."""

    def __init__(self) -> None:
        self._received = False
        signal.signal(ASK, self._note)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """Be deaf to requests from here on: on its way out Python gives back a handler, and the default is death."""
        signal.signal(ASK, signal.SIG_IGN)

    def _note(self, number: int, frame: object) -> None:
        self._received = True

    def __call__(self) -> bool:
        """Whether the request has come."""
        return self._received


@dataclass(frozen=True, kw_only=True)
class Channels:
    """What leads from a rank to its supervisor."""

    stacks: int
    """File descriptor that takes the stacks of threads."""
    errors: ErrorRelay


def rank_name() -> str:
    """This rank, for messages."""
    return f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"


def lost_message(reason: str) -> str:
    """What a user reads about this rank when it has lost its peers."""
    return f"{rank_name()} lost the other ranks ({reason}); the same command continues"


def supervise(train: Callable[[StopRequest, Channels], int]) -> int:
    """Run `train(stop request, channels)` in a child; returns the exit code, in both processes."""
    channels = Channels(stacks=os.memfd_create("stacks"), errors=ErrorRelay())
    signal.pthread_sigmask(signal.SIG_BLOCK, {*STOP_SIGNALS, ASK})
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        stop = StopRequest()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, ASK})
        try:
            return train(stop, channels)
        finally:
            stop.close()
    supervisor = _Supervisor(child, channels)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*STOP_SIGNALS, ASK})
    return supervisor.wait()


class _Supervisor:
    def __init__(self, child: int, channels: Channels) -> None:
        self._child, self._stacks, self._shown = child, channels.stacks, 0
        self._errors = channels.errors
        self._errors.leave_to_rank()
        self._asked: Counter[int] = Counter()
        self._hangs_since: float | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._forward)

    def _forward(self, number: int, frame: object) -> None:
        self._asked[number] += 1
        hopeless = self._hangs_since is not None or self._asked[number] > 1
        if not hopeless and os.environ.get("RANK", "0") == "0":
            name = signal.Signals(number).name
            print(f"{name}: stopping after a checkpoint; once more leaves at once", file=sys.stderr, flush=True)
        os.kill(self._child, signal.SIGKILL if hopeless else ASK)

    def wait(self) -> int:
        """Watch the rank to its end; returns the exit code that stands for it."""
        poll = select.poll()
        ended = os.pidfd_open(self._child)
        poll.register(ended, select.POLLIN)
        for boss in {os.getppid(), int(os.environ.get("DMD_WRAPPER", os.getppid()))}:
            poll.register(_pidfd(boss), select.POLLIN)
        poll.register(self._errors.reader, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(500)}
            if self._errors.reader in ready and not self._errors.pass_on():
                poll.unregister(self._errors.reader)
            self._show_stacks()
            if ended in ready:
                return self._report(os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1]))
            for boss in ready - {self._errors.reader}:
                poll.unregister(boss)
                self._forward(signal.SIGTERM, None)
            if self._hangs_since is not None and time.monotonic() - self._hangs_since > GRACE_SECONDS:
                os.kill(self._child, signal.SIGKILL)

    def _show_stacks(self) -> None:
        """Print what the rank has dumped since the last look."""
        text = os.pread(self._stacks, 1 << 20, self._shown).decode(errors="replace")
        if not text:
            return
        self._shown += len(text.encode())
        if "Timeout (" in text and self._hangs_since is None:
            self._hangs_since = time.monotonic()
            print(f"{rank_name()} gave no sign of life in time (train.collective_timeout)", file=sys.stderr)
        lines = "".join(f"  {line}\n" for line in text.splitlines())
        print(f"stack of {rank_name()}:\n{lines}", end="", file=sys.stderr, flush=True)

    def _report(self, code: int) -> int:
        self._errors.finish()
        if code >= 0:
            return code
        gave_up = code == -signal.SIGABRT or self._hangs_since is not None
        if gave_up and self._errors.reason is not None:
            told = lost_message(self._errors.reason)
            print(f"dmd train: error: {told}", file=sys.stderr, flush=True)
            return LOST
        cause = f"was killed by {signal.Signals(-code).name} (signal {-code})"
        print(f"dmd train: error: {rank_name()} {cause}; the same command continues", file=sys.stderr, flush=True)
        return SIGNALLED - code


def _pidfd(process: int) -> int:
    """A descriptor that becomes readable when the process ends; of a closed pipe if it already has."""
    try:
        return os.pidfd_open(process)
    except ProcessLookupError:
        reader, writer = os.pipe()
        os.close(writer)
        return reader
