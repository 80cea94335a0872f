"""Each rank is two processes: one that trains, and its supervisor, which forwards requests to stop and reports its end.

The launcher loses the exit status of a rank that a signal killed, and does not report which rank it was. The supervisor
forks before anything large is imported, so it takes ten megabytes. It
- asks its rank to stop at the first SIGTERM or SIGINT, and kills it at a second one of the same kind. Schedulers signal
  every process of a job, the launcher does so too, and `dmd train` forwards signals. So signals within REPEAT_SECONDS
  are one request. A signal from the launcher or `dmd train`, or their death, is never a second one;
- ends a rank at once that has nothing to save yet;
- reports how its rank ended (`launch.supervision.ending`): as the rank has noted it, or by the signal that killed it;
- prints the stacks that a rank dumps when it crashes or gives no heartbeat, and kills one that goes on giving none
  (`launch.supervision.watchdog`);
- distinguishes a rank that lost its peers under NCCL from a crash (`launch.supervision.lost`).
A rank never outlives its supervisor.
"""

import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from data_shards.terminal import WRAPPER_PID, clear
from dmd.exit_codes import FAILED, LOST, SIGNALLED, STOPPED
from launch.supervision.channels import Channels, Phase
from launch.supervision.ending import Ending, Reporter
from launch.supervision.watchdog import START_SECONDS, Watchdog

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
REPEAT_SECONDS = 5.0
"""A stop signal counts as a second request this long after the first one of its kind."""
GRACE_SECONDS = 5.0
"""Time for a joining rank to publish that it stops."""
POLL_SECONDS = 0.1
_STACK_BYTES = 1 << 20
"""How much of the stacks is read, and printed, at once."""
_PR_SET_PDEATHSIG = 1

StopRequest = Callable[[], bool]
"""Whether this rank has been asked to stop; it looks at step boundaries."""


def rank_name() -> str:
    """This rank, for messages."""
    return f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}"


def lost_message(reason: str) -> str:
    """The message of an ending of this rank because it has lost its peers."""
    return f"{rank_name()} lost the other ranks ({reason}); the same command continues"


def stopped_message() -> str:
    """The message of an ending of this rank because it was asked to stop before it had anything to save."""
    return f"{rank_name()} was asked to stop before its first step; the same command continues"


def supervise(train: Callable[[StopRequest, Channels], int]) -> int:
    """Run `train(stop request, channels)` in a child; returns its exit code."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    channels = Channels()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        Watchdog(START_SECONDS, channels)()
        end(train(lambda: channels.stop_asked, channels))
    return _Supervisor(child, channels).wait()


def end(code: int) -> NoReturn:
    """End this process without clean-up, in which threads of gloo, NCCL, CUDA and others would abort it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Supervisor:
    """Watches a rank. Stop signals stay blocked here: the supervisor reads them with their senders, one by one."""

    def __init__(self, child: int, channels: Channels) -> None:
        self._child = child
        self._channels = channels
        self._stderr = channels.stderr
        self._stderr.close_writer()
        self._reporter = Reporter()
        wrapper = os.environ.get(WRAPPER_PID)
        self._wrapper = None if wrapper is None else int(wrapper)
        self._launcher = os.getppid()
        self._ancestors = {self._launcher, *([] if self._wrapper is None else [self._wrapper])}
        self._requested_at: dict[int, float] = {}
        """When a stop signal came first."""
        self._stack_bytes_shown = 0
        self._hangs_since: float | None = None
        self._heartbeats_at_hang = 0
        self._stopped_early = False
        """Whether the rank was killed because of a request to stop, before it had anything to save."""

    def wait(self) -> int:
        """Watch the rank to its end; returns the exit code that stands for it."""
        poll = select.poll()
        ended = os.pidfd_open(self._child)
        poll.register(ended, select.POLLIN)
        ancestors = {_pidfd(process): process for process in self._ancestors}
        for descriptor in (*ancestors, self._stderr.reader):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(1000 * POLL_SECONDS)}
            if self._stderr.reader in ready and not self._stderr.forward():
                poll.unregister(self._stderr.reader)
            self._show_stacks()
            if ended in ready:
                return self._report(os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1]))
            for descriptor in ready & ancestors.keys():
                poll.unregister(descriptor)
                if ancestors[descriptor] == self._wrapper:
                    self._wrapper = None
                self._request(signal.SIGTERM, ancestors[descriptor])
            while (received := signal.sigtimedwait(STOP_SIGNALS, 0)) is not None:
                quiet = received.si_pid == self._launcher  # another of its ranks has ended
                self._request(received.si_signo, received.si_pid, quiet=quiet)
            self._kill_if_overdue()

    def _request(self, number: int, sender: int, *, quiet: bool = False) -> None:
        """Pass a request to stop to the rank, or kill it at a second one.

        Args:
            number: of the signal.
            sender: process id.
            quiet: print nothing.
        """
        now = time.monotonic()
        first = not self._requested_at
        since = self._requested_at.setdefault(number, now)
        if self._hangs_since is not None or (sender not in self._ancestors and now - since >= REPEAT_SECONDS):
            os.kill(self._child, signal.SIGKILL)
        elif first:
            self._channels.ask_to_stop()
            if not quiet and self._channels.phase == Phase.TRAINING and self._reporter.rank == 0:
                name, second = signal.Signals(number).name, f"a second one after {REPEAT_SECONDS:.0f} s ends at once"
                self._print(f"{name}: stopping after a checkpoint; {second}")

    def _kill_if_overdue(self) -> None:
        """Kill a rank that hangs, or that has been asked to stop before it had anything to save."""
        now, phase = time.monotonic(), self._channels.phase
        if self._hangs_since is not None:
            if self._channels.heartbeats != self._heartbeats_at_hang:
                self._hangs_since = None
            elif now - self._hangs_since > self._channels.patience_seconds:
                os.kill(self._child, signal.SIGKILL)
        if self._requested_at and phase < Phase.TRAINING:
            waited = now - min(self._requested_at.values())
            if waited > (GRACE_SECONDS if phase == Phase.JOINING else 0):
                self._stopped_early = True
                os.kill(self._child, signal.SIGKILL)

    def _show_stacks(self) -> None:
        """Print the stacks that the rank has dumped since the last call."""
        text = os.pread(self._channels.stacks, _STACK_BYTES, self._stack_bytes_shown).decode(errors="replace")
        if not text:
            return
        self._stack_bytes_shown += len(text.encode())
        if "Timeout (" in text and self._hangs_since is None:
            self._hangs_since = time.monotonic()
            self._heartbeats_at_hang = self._channels.heartbeats
            self._print(f"{rank_name()} gave no heartbeat in time (train.collective_timeout)")
        lines = "".join(f"\n  {line}" for line in text.splitlines())
        self._print(f"stack of {rank_name()}:{lines}")

    def _print(self, text: str) -> None:
        print(f"{clear(sys.stderr)}{text}\n", end="", file=sys.stderr, flush=True)

    def _report(self, code: int) -> int:
        self._stderr.finish()
        sys.stdout.flush()
        ending = self._ending(code)
        self._reporter.report(ending, wrapper_alive=self._wrapper is not None)
        return ending.code

    def _ending(self, code: int) -> Ending:
        """How the rank ended, by its exit status, its notes, and what the supervisor has seen."""
        rank = self._reporter.rank
        notes = self._channels.notes()
        if code >= 0:
            if notes.own is not None and notes.own.code == code:
                return notes.own
            message = f"{rank_name()} failed; its traceback is above" if code == FAILED else ""
            return Ending(code=code, message=message, origin=rank)
        if self._stopped_early:
            return Ending(code=STOPPED, message=stopped_message(), origin=rank)
        may_have_lost_peers = code == -signal.SIGABRT or self._hangs_since is not None
        if may_have_lost_peers and notes.cause is not None:
            return notes.cause
        if may_have_lost_peers and self._stderr.reason is not None:
            return Ending(code=LOST, message=lost_message(self._stderr.reason), origin=rank)
        hung = "gave no heartbeat in time (train.collective_timeout; its stack is above) and "
        killed = f"was killed by {signal.Signals(-code).name} (signal {-code}); the same command continues"
        message = f"{rank_name()} {hung if self._hangs_since is not None else ''}{killed}"
        return Ending(code=SIGNALLED - code, message=message, origin=rank)


def _pidfd(process: int) -> int:
    """A descriptor that becomes readable when the process ends; that of a closed pipe if it has ended already."""
    try:
        return os.pidfd_open(process)
    except ProcessLookupError:
        reader, writer = os.pipe()
        os.close(writer)
        return reader
