"""Where `dmd train` collects how its ranks ended: a file in memory, or for ranks of other hosts in stderr."""

import os
import subprocess
import sys
import threading
from typing import Protocol

from launch.supervision.ending import STDERR, Ending, read_report, read_reports


class Collector(Protocol):
    """Collects the endings of ranks."""

    where: str
    """What the ranks' environment says of it (`launch.supervision.ending.REPORTS`)."""
    stderr: int | None
    """Where the launcher's stderr has to go, as Popen takes it."""

    def watch(self, launcher: "subprocess.Popen[bytes]") -> None:
        """The launcher has been started."""

    def endings(self) -> dict[int, Ending]:
        """The endings by rank, once the launcher has ended."""


class InMemory:
    """A file in the memory of this process, which the supervisors on this host open through /proc."""

    def __init__(self) -> None:
        self.stderr: int | None = None
        self._file = os.memfd_create("reports")
        self.where = f"/proc/{os.getpid()}/fd/{self._file}"

    def watch(self, launcher: "subprocess.Popen[bytes]") -> None:
        """As `Collector.watch`."""

    def endings(self) -> dict[int, Ending]:
        """As `Collector.endings`."""
        text = os.pread(self._file, os.fstat(self._file).st_size, 0).decode(errors="replace")
        os.close(self._file)
        return read_reports(text.splitlines())


class FromStderr:
    """What the ranks of other hosts say among the lines of the launcher's stderr; all other lines are passed on."""

    def __init__(self) -> None:
        self.where = STDERR
        self.stderr: int | None = subprocess.PIPE
        self._endings: dict[int, Ending] = {}
        self._reader: threading.Thread | None = None

    def watch(self, launcher: "subprocess.Popen[bytes]") -> None:
        """As `Collector.watch`."""
        self._reader = threading.Thread(target=self._pass_on, args=(launcher,), daemon=True)
        self._reader.start()

    def _pass_on(self, launcher: "subprocess.Popen[bytes]") -> None:
        assert launcher.stderr is not None
        for line in launcher.stderr:
            report = read_report(line.decode(errors="replace"))
            if report is None:
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
            else:
                self._endings[report[0]] = report[1]

    def endings(self) -> dict[int, Ending]:
        """As `Collector.endings`."""
        if self._reader is not None:
            self._reader.join(10)  # a process that has left the launcher's group may hold its stderr
        return self._endings
