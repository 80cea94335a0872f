"""Runs DeepSpeed's launcher: forwards signals to its ranks, and returns one ending for all that ran.

The stock launcher dies of a signal together with its ranks. It returns the first exit code that it meets, and 0 where a
signal killed a rank. So its processes never see SIGINT and SIGTERM: they inherit a mask that blocks both. A request to
stop goes to the supervisors of the ranks, no matter whether it came to this process, to all of them or to their process
group. Before a rank runs there is nothing to save, and everything ends at once.
"""

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

import psutil

from dmd.exit_codes import FAILED, LOST, SIGNALLED, STOPPED
from launch.starting.ending_collectors import EndingCollector
from launch.starting.rank_processes import RankProcesses, kill_group
from launch.supervision.ending import Ending, cause
from launch.supervision.supervise import REPEAT_SECONDS, STOP_SIGNALS

POLL_SECONDS = 0.2
RETRY_SECONDS = 1.0
"""Time between two attempts to reach ranks that are not there yet."""


class Launcher:
    """One run of a launcher's command.

    Args:
        processes: its ranks.
        collector: of their endings.
        ranks: their numbers.
        patience: seconds that ranks get to end by themselves after their launcher has died.
    """

    def __init__(
        self, processes: RankProcesses, collector: EndingCollector, ranks: Sequence[int], *, patience: float
    ) -> None:
        self._processes = processes
        self._collector = collector
        self._ranks = ranks
        self._patience = patience
        self._requested_at: dict[int, float] = {}
        """When a stop signal came first."""
        self._undelivered: set[int] = set()
        """Stop signals that the ranks have not got yet."""
        self._retry_at = 0.0
        self._kill_requested = False
        self._ranks_reported = False

    def run(self, command: list[str], environment: Mapping[str, str]) -> Ending:
        """Run the command to its end; returns what the ending of all ranks was."""
        previous = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process = subprocess.Popen(
                command,
                env=environment,
                start_new_session=True,
                stdout=self._collector.pipe,
                stderr=self._collector.pipe,
            )
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._collector.watch(process)
            while not _ends_within(process, POLL_SECONDS):
                self._forward_requests(process.pid)
            abandoned = self._end_leftovers(process.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._overall_ending(process.returncode, abandoned=abandoned)

    @property
    def stop_requested(self) -> bool:
        """Whether a request to stop has come."""
        return bool(self._requested_at)

    @property
    def ranks_reported(self) -> bool:
        """Whether a rank has reported how it ended."""
        return self._ranks_reported

    def _on_signal(self, number: int, frame: object) -> None:
        """Count requests, not signals: one request may reach this process twice."""
        now = time.monotonic()
        if number not in self._requested_at:
            self._requested_at[number] = now
            self._undelivered.add(number)
        elif now - self._requested_at[number] >= REPEAT_SECONDS:
            self._kill_requested = True

    def _forward_requests(self, launcher_pid: int) -> None:
        """Forward requests to the ranks."""
        if self._kill_requested:
            self._processes.signal(launcher_pid, signal.SIGKILL)
            kill_group(launcher_pid)
        elif self._undelivered and time.monotonic() >= self._retry_at:
            self._undelivered = {
                number for number in self._undelivered if not self._processes.signal(launcher_pid, number)
            }
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if self._undelivered and self._processes.ranks_start_together:
                kill_group(launcher_pid)  # no rank runs yet

    def _end_leftovers(self, launcher_pid: int) -> bool:
        """Let ranks that outlive their launcher stop by themselves, and kill those that do not.

        Returns:
            whether there were any.
        """
        remaining = self._processes.remaining(launcher_pid)
        abandoned = bool(remaining)
        if abandoned:
            self._processes.signal(launcher_pid, signal.SIGTERM)
        end = time.monotonic() + self._patience
        while remaining and not self._kill_requested and time.monotonic() < end:
            _, remaining = psutil.wait_procs(remaining, timeout=POLL_SECONDS)
        kill_group(launcher_pid)
        return abandoned

    def _overall_ending(self, code: int, *, abandoned: bool) -> Ending:
        """The ending that stands for all ranks: that of the rank that is the cause.

        Args:
            code: exit code of the launcher.
            abandoned: whether ranks outlived it.
        """
        endings = self._collector.endings()
        self._ranks_reported = bool(endings)
        requested_once = bool(self._requested_at) and not self._kill_requested
        if not endings and requested_once:
            return Ending(code=STOPPED, message="asked to stop before a rank ran; the same command continues")
        if not endings and not abandoned and not self._kill_requested:
            message = f"the launcher ended with exit code {code} before a rank did; what it said is above"
            return Ending(code=code if code > 0 else FAILED, message=message)
        # A request that reaches a supervisor before it can obey kills it: then the reports of the others stand for all.
        all_stop = requested_once and all(ending.code == STOPPED for ending in endings.values())
        missing = [] if all_stop else [rank for rank in self._ranks if rank not in endings]
        for rank in missing:
            message = f"rank {rank} ended without a report, as did its supervisor; the same command continues"
            endings[rank] = Ending(code=LOST, message=message, origin=rank)
        found = cause(endings)
        killed = SIGNALLED + signal.SIGKILL
        if self._kill_requested and found.code in (LOST, killed):
            return Ending(code=killed, message="asked to stop again: the ranks were killed; the same command continues")
        # A launcher that did not die returns the exit code of ranks that stopped, which may have ended before this one
        # looked for them.
        launcher_died = abandoned or (found.code == STOPPED and code <= 0)
        if launcher_died and not self._requested_at and found.code in (0, STOPPED):
            return Ending(code=LOST, message="the launcher has died; the same command continues")
        return found


def _ends_within(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
