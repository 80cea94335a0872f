"""How `dmd train` collects the endings of its ranks: from a file in memory, or from stderr for ranks of other hosts."""

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Protocol, TextIO

from data_shards.durable import APPENDING, open_regular
from launch.supervision.ending import STDERR, Ending, read_report, read_reports

_READER_SECONDS = 10.0
"""How long the reader of stderr may go on after the launcher: a process that left its group may hold the pipe open."""
_OF_LAUNCHERS = re.compile(r"(\S+: )?\[\d{4}-\d\d-\d\d [\d:,]+\] \[[A-Z]+\] \[\w+\.py:\d+:|pdsh@\S+: ")
"""Lines of DeepSpeed's logger, behind the host's name that pdsh puts there, and of pdsh itself."""


class EndingCollector(Protocol):
    """Collects the endings of ranks."""

    address: str
    """Where ranks report to, for their environment (`launch.supervision.ending.REPORTS`)."""
    pipe: int | None
    """The launcher's stdout and stderr, as an argument of Popen."""

    def watch(self, launcher: "subprocess.Popen[bytes]") -> None:
        """Begin to collect; the launcher has been started."""

    def endings(self) -> dict[int, Ending]:
        """The endings by rank; to be called once the launcher has ended."""


class MemoryCollector:
    """A file in the memory of this process, which the supervisors on this host open through /proc."""

    def __init__(self) -> None:
        self.pipe: int | None = None
        self._file = os.memfd_create("reports")
        self.address = f"/proc/{os.getpid()}/fd/{self._file}"

    def watch(self, launcher: "subprocess.Popen[bytes]") -> None:
        """As `EndingCollector.watch`."""

    def endings(self) -> dict[int, Ending]:
        """As `EndingCollector.endings`."""
        text = os.pread(self._file, os.fstat(self._file).st_size, 0).decode(errors="replace")
        os.close(self._file)
        return read_reports(text.splitlines())


class StderrCollector:
    """Reads the endings from the launcher's stderr, where ranks of other hosts write them; forwards all other lines.

    What pdsh and the launchers of all hosts say about themselves goes to a log.

    Args:
        log: its path.
    """

    def __init__(self, log: Path) -> None:
        self.address = STDERR
        self.pipe: int | None = subprocess.PIPE
        self._log = LateLog(log)
        self._endings: dict[int, Ending] = {}
        self._readers: list[threading.Thread] = []

    def watch(self, launcher: "subprocess.Popen[bytes]") -> None:
        """As `EndingCollector.watch`."""
        for source, screen in ((launcher.stdout, sys.stdout), (launcher.stderr, sys.stderr)):
            thread = threading.Thread(target=self._read_lines, args=(source, screen), daemon=True)
            thread.start()
            self._readers.append(thread)

    def _read_lines(self, source: IO[bytes], screen: TextIO) -> None:
        for line in source:
            text = line.decode(errors="replace")
            report = read_report(text)
            if report is not None:
                self._endings[report[0]] = report[1]
            elif _OF_LAUNCHERS.match(text):
                self._log.write(text)
            else:
                with suppress(OSError):  # a screen that is full or gone: unless the pipe is read on, all ranks block
                    screen.buffer.write(line)
                    screen.buffer.flush()

    def endings(self) -> dict[int, Ending]:
        """As `EndingCollector.endings`."""
        end = time.monotonic() + _READER_SECONDS
        for reader in self._readers:
            reader.join(max(end - time.monotonic(), 0))
        self._log.close()
        return self._endings


class LateLog:
    """Appends lines to a file as soon as its directory is there, which the first rank makes; a directory that never is
    there leaves them to stderr."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._waiting: list[str] = []

    def write(self, text: str) -> None:
        """Append a text, at once or later."""
        with self._lock:
            self._waiting.append(text)
            with suppress(OSError, ValueError):
                with open(open_regular(self._path, APPENDING), "a", encoding="utf-8") as file:
                    file.write("".join(self._waiting))
                self._waiting = []

    def close(self) -> None:
        """Leave the rest to stderr."""
        with self._lock:
            with suppress(OSError):
                sys.stderr.write("".join(self._waiting))
                sys.stderr.flush()
            self._waiting = []
