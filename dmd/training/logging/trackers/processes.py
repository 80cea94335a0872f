"""The senders of a training: started with it, ended with it, never waited for longer than a few seconds."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from data_shards.durable import open_regular
from dmd.exit_codes import FAILED
from dmd.training.logging.trackers.about import ending
from dmd.training.logging.trackers.log import FOLDER, LogReader, read_sent
from dmd.training.logging.trackers.origin import origin
from dmd.training.logging.trackers.variables import without_ties

END_SECONDS = 10.0
"""How long the end of a training waits for its trackers."""
_SENDER = "dmd.training.logging.trackers.sender"


class Senders:
    """The processes that send the numbers of a run to trackers."""

    def __init__(self, run: Path, names: Sequence[str], *, patience: float = END_SECONDS) -> None:
        """Start a process for each tracker. Raises OSError where the run directory cannot be written, ValueError
        where the log of one would be a link or a pipe.

        Args:
            patience: seconds that `close` waits at most.
        """
        self._run = run
        self._patience = patience
        self._processes = {name: self._start(name) for name in names}
        self._listeners = [
            threading.Thread(target=self._listen, args=(name, process), daemon=True)
            for name, process in self._processes.items()
        ]
        for listener in self._listeners:
            listener.start()

    def _start(self, name: str) -> subprocess.Popen[str]:
        folder = self._run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        packages = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONSAFEPATH": "1"}
        with open(open_regular(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", _SENDER, name, str(self._run.absolute()), str(self._patience)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**without_ties(os.environ), **packages},
                text=True,
                start_new_session=True,
            )

    def _listen(self, name: str, process: subprocess.Popen[str]) -> None:
        """Print what a sender says, and where it fails."""
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr, flush=True)
        if process.wait() == FAILED:
            log = self._run / FOLDER / f"{name}.log"
            print(f"{name}: its process failed; {log} says why", file=sys.stderr, flush=True)

    def close(self, *, at_once: bool = False) -> bool:
        """Let them send the rest and end, within the patience; returns whether all is sent, and says where it is not.

        Nothing is left to do the second time.

        Args:
            at_once: without patience.
        """
        patience = 0.0 if at_once else self._patience
        for process in self._processes.values():
            assert process.stdin is not None
            process.stdin.close()
        try:
            self._wait(patience)
        except BaseException:  # such as Ctrl-C
            for process in self._processes.values():
                process.kill()
            raise
        for listener in self._listeners:
            listener.join()
        sent = [self._is_sent(name, process.returncode) for name, process in self._processes.items()]
        self._processes, self._listeners = {}, []
        return all(sent)

    def _wait(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        for name, process in self._processes.items():
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                print(f"{name}: not done {patience:g} s after the end", file=sys.stderr, flush=True)

    def _is_sent(self, name: str, code: int) -> bool:
        """Whether a tracker has all, which its process also says by its exit code."""
        try:
            sent = read_sent(self._run, name)
            known = sent.step if sent is not None and sent.origin.same_run(origin(self._run)) else -1
            unsent = LogReader(self._run).steps(known, ended=ending(self._run) != "lost")
        except (OSError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            return False
        sends = f"`dmd track {self._run}` sends them"
        if unsent:
            print(f"{name}: the numbers of {len(unsent)} steps are not sent; {sends}", file=sys.stderr, flush=True)
        elif code:
            print(f"{name}: its pictures or how it ended are not sent; {sends}", file=sys.stderr, flush=True)
        return not unsent and code == 0
