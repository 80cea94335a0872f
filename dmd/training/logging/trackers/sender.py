"""The process that sends the numbers of a run to one tracker, beside its training or after it.

    python -m dmd.training.logging.trackers.sender NAME RUN SECONDS

It begins when no other one sends the same to its tracker (`turn`). It ends when its standard input does, that is with
the training, however that ended: after one last attempt, in at most SECONDS. What it prints is one line per outage, on
standard output; what libraries print goes to its standard error, which is a file.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data_shards.places import redact
from dmd.documents import LINES
from dmd.exit_codes import LOST
from dmd.training.logging.trackers.about import about, ending
from dmd.training.logging.trackers.log import LogReader, PictureReader, Sent, read_sent, write_sent
from dmd.training.logging.trackers.origin import origin
from dmd.training.logging.trackers.table import TRACKERS
from dmd.training.logging.trackers.tracker import Picture, Tracker
from dmd.training.logging.trackers.turn import wait_for_turn

POLL_SECONDS = 1.0
"""How often it looks for new numbers."""
RETRY_SECONDS = (5.0, 600.0)
"""Pause after a failure: the first one, and the longest; each is twice the one before."""
_LONGEST_REASON = 300


class Sender:
    """Sends to a tracker what it lacks of a run."""

    def __init__(self, run: Path, name: str, tracker: Tracker, *, patience: float, say: Callable[[str], None]) -> None:
        """Prepare it; nothing is sent yet.

        Args:
            patience: seconds that the end may take.
            say: prints a line for the user.
        """
        self._run = run
        self._name = name
        self._tracker = tracker
        self._patience = patience
        self._say = say
        self._failures: tuple[type[Exception], ...] = (*tracker.failures(), ValueError)
        self._log = LogReader(run)
        self._pictures = PictureReader(run)
        self._waiting: list[Picture] = []
        self._sent: Sent | None = None
        self._pause = 0.0
        self._retry_at = 0.0

    def send(self, *, ended: bool = False) -> bool:
        """Send what there is, and close the tracker's run where the training has `ended`; returns whether it could.

        After a failure nothing is tried for a while, but at the end.
        """
        if not ended and time.monotonic() < self._retry_at:
            return False
        try:
            self._attempt(ended=ended)
        except self._failures as error:
            if not self._pause:
                self._say(f"{self._name}: {_reason(error)}; its numbers wait in {self._run / LINES}")
            shortest, longest = RETRY_SECONDS
            self._pause = min(max(2 * self._pause, shortest), longest)
            self._retry_at = time.monotonic() + self._pause
            return False
        self._pause = 0.0
        return True

    def _attempt(self, *, ended: bool) -> None:
        if self._sent is None:
            self._sent = self._open()
        how = ending(self._run) if ended else "lost"
        steps = self._log.steps(self._sent.step, ended=how != "lost")
        if steps:
            self._tracker.send(steps)
            self._sent.step = steps[-1].step
            write_sent(self._run, self._name, self._sent)
        self._show(self._sent)
        if ended:
            self._tracker.close(how)

    def _open(self) -> Sent:
        """Continue the tracker's run, unless that is elsewhere or of another training."""
        sent, place, here = read_sent(self._run, self._name), self._tracker.place(), origin(self._run)
        if sent is not None and (sent.place != place or not sent.origin.same_run(here)):
            if sent.origin.same_training(here) and sent.origin.path != here.path:
                self._say(f"{self._name}: {self._run} is a copy of {sent.origin.path} and becomes a run of its own")
            sent = None
        known = None if sent is None else sent.identity
        facts = about(self._run)
        identity = self._tracker.open(facts, known, patience=self._patience)
        if sent is None:
            sent = Sent(place=place, identity=identity, origin=here)
            self._say(f"{self._name}: run {identity} at {place}")
        sent.origin = here
        write_sent(self._run, self._name, sent)
        self._tracker.describe(facts)
        return sent

    def _show(self, sent: Sent) -> None:
        self._waiting += self._pictures.pictures()
        while self._waiting:
            picture = self._waiting[0]
            if picture.step > sent.pictures.get(picture.tag, -1):
                self._tracker.show(picture)
                sent.pictures[picture.tag] = picture.step
                write_sent(self._run, self._name, sent)
            del self._waiting[0]


def _reason(error: Exception) -> str:
    """An error in one line, without secrets."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redact(lines[0])[:_LONGEST_REASON]


def main(name: str, run: Path, patience: float) -> int:
    """Send until standard input ends; returns the exit code: `LOST` where something is left."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="replace")
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGTERM):  # the training is asked to stop, and says when it has
        signal.signal(number, signal.SIG_IGN)

    def say(line: str) -> None:
        with suppress(OSError):  # the training is gone
            print(line, file=lines, flush=True)

    ended = threading.Event()

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1):
                pass
        ended.set()
        time.sleep(patience)
        os._exit(LOST)  # a library waits for a server

    threading.Thread(target=watch, daemon=True).start()
    turn = wait_for_turn(run, name, say=say)
    sender = Sender(run, name, TRACKERS[name](), patience=patience, say=say)  # type: ignore[index]
    while not ended.wait(POLL_SECONDS):
        sender.send()
    code = 0 if sender.send(ended=True) else LOST
    os.close(turn)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
