"""How `dmd train` collects the endings of its ranks: from a file in memory, or from stderr for ranks of other hosts."""

import os
import subprocess
import sys
import threading
from typing import Protocol

from launch.supervision.ending import STDERR, Ending, read_report, read_reports

_READER_SECONDS = 10.0
"""How long the reader of stderr may go on after the launcher: a process that left its group may hold the pipe open."""


class EndingCollector(Protocol):
    """Collects the endings of ranks."""

    address: str
    """Where ranks report to, for their environment (`launch.supervision.ending.REPORTS`)."""
    stderr: int | None
    """The launcher's stderr, as an argument of Popen."""

    def watch(self, launcher: "subprocess.Popen[bytes]") -> None:
        """Begin to collect; the launcher has been started."""

    def endings(self) -> dict[int, Ending]:
        """The endings by rank; to be called once the launcher has ended."""


class MemoryCollector:
    """A file in the memory of this process, which the supervisors on this host open through /proc."""

    def __init__(self) -> None:
        self.stderr: int | None = None
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
    """Reads the endings from the launcher's stderr, where ranks of other hosts write them; forwards all other lines."""

    def __init__(self) -> None:
        self.address = STDERR
        self.stderr: int | None = subprocess.PIPE
        self._endings: dict[int, Ending] = {}
        self._reader: threading.Thread | None = None

    def watch(self, launcher: "subprocess.Popen[bytes]") -> None:
        """As `EndingCollector.watch`."""
        self._reader = threading.Thread(target=self._read_lines, args=(launcher,), daemon=True)
        self._reader.start()

    def _read_lines(self, launcher: "subprocess.Popen[bytes]") -> None:
        assert launcher.stderr is not None
        for line in launcher.stderr:
            report = read_report(line.decode(errors="replace"))
            if report is None:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
            else:
                self._endings[report[0]] = report[1]

    def endings(self) -> dict[int, Ending]:
        """As `EndingCollector.endings`."""
        if self._reader is not None:
            self._reader.join(_READER_SECONDS)
        return self._endings
