"""DeepSpeed's launcher under way: signals go to its ranks, and one ending stands for all that ran.

The stock launcher dies of a signal and takes its ranks along, returns the first exit code that it meets, and 0 where a
signal killed a rank. So its processes never see SIGINT and SIGTERM: they inherit a mask that blocks both. A stop
request goes to the ranks' supervisors, whether it came to this process, to all of them or to their process group; where
no rank runs yet there is nothing to save, and everything ends at once.
"""

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence

import psutil

from dmd.exit_codes import FAILED, LOST, SIGNALLED, STOPPED
from launch.starting.collect import Collector
from launch.starting.reach import Reach, end_group
from launch.supervision.ending import Ending, cause
from launch.supervision.supervise import REPEAT_SECONDS, STOP_SIGNALS

LOOK_SECONDS = 0.2
RETRY_SECONDS = 1.0
"""Time between two attempts to reach ranks that are not there yet."""


class Launcher:
    """One run of a launcher's command.

    Args:
        reach: the way to its ranks.
        reports: where they say how they ended.
        ranks: their numbers.
        patience: seconds that ranks whose launcher has died get to end by themselves.
    """

    def __init__(self, reach: Reach, reports: Collector, ranks: Sequence[int], patience: float) -> None:
        self._reach, self._reports, self._ranks, self._patience = reach, reports, ranks, patience
        self._asked: dict[int, float] = {}
        self._waiting: set[int] = set()
        self._retry_at = 0.0
        self._kills = False

    def run(self, command: list[str], environment: Mapping[str, str]) -> Ending:
        """Run the command to its end; returns what the ending of all ranks was."""
        previous = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            stderr = self._reports.stderr
            process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=stderr)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self._reports.watch(process)
            while not _ends_within(process, LOOK_SECONDS):
                self._carry(process.pid)
            abandoned = self._sweep(process.pid)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._settle(process.returncode, abandoned)

    def _note(self, number: int, frame: object) -> None:
        """Count requests, not deliveries: one process group may be told twice."""
        now = time.monotonic()
        if number not in self._asked:
            self._asked[number] = now
            self._waiting.add(number)
        elif now - self._asked[number] >= REPEAT_SECONDS:
            self._kills = True

    def _carry(self, launcher: int) -> None:
        """Take to the ranks what this process was told."""
        if self._kills:
            self._reach.signal(launcher, signal.SIGKILL)
            end_group(launcher)
        elif self._waiting and time.monotonic() >= self._retry_at:
            self._waiting = {number for number in self._waiting if not self._reach.signal(launcher, number)}
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if self._waiting and self._reach.ranks_start_together:
                end_group(launcher)  # no rank runs yet

    def _sweep(self, launcher: int) -> bool:
        """Let ranks that a dead launcher has left behind stop by themselves, and end what is left after that.

        Returns:
            whether there were any.
        """
        left = self._reach.left(launcher)
        abandoned = bool(left)
        if abandoned:
            self._reach.signal(launcher, signal.SIGTERM)
        end = time.monotonic() + self._patience
        while left and not self._kills and time.monotonic() < end:
            _, left = psutil.wait_procs(left, timeout=LOOK_SECONDS)
        end_group(launcher)
        return abandoned

    def _settle(self, code: int, abandoned: bool) -> Ending:
        """What to say of all ranks: the ending of the one that is the cause."""
        endings = self._reports.endings()
        if not endings and self._asked and not self._kills:
            return Ending(code=STOPPED, message="asked to stop before a rank ran; the same command continues")
        if not endings and not abandoned and not self._kills:
            message = f"the launcher ended with exit code {code} before a rank did; what it said is above"
            return Ending(code=code if code > 0 else FAILED, message=message)
        # A request that reaches a supervisor before it has come as far as to take it just kills it.
        stopping = bool(endings and self._asked) and all(ending.code == STOPPED for ending in endings.values())
        for rank in self._ranks:
            if rank not in endings and not stopping:
                message = f"rank {rank} ended without a word, and its supervisor too; the same command continues"
                endings[rank] = Ending(code=LOST, message=message, origin=rank)
        found, killed = cause(endings), SIGNALLED + signal.SIGKILL
        if self._kills and found.code in (LOST, killed):
            return Ending(code=killed, message="asked to stop again: the ranks were killed; the same command continues")
        # A launcher that lives passes on the exit code of ranks that have stopped; they may have ended before the look.
        died = abandoned or (found.code == STOPPED and code <= 0)
        if died and not self._asked and found.code in (0, STOPPED):
            return Ending(code=LOST, message="the launcher has died; the same command continues")
        return found


def _ends_within(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
