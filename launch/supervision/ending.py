"""How ranks end: what a rank says at its end, what leads there from it, and which of several ends is the cause.

A rank leaves an `Ending` with its supervisor. The supervisor passes it to `dmd train`, which prints one line, the last
one, for all of its ranks: into a file of that process (REPORTS names it) on the same host, as a line of stderr through
ssh. Where there is no such process, or no longer, the supervisor prints it itself.
"""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from dmd.exit_codes import STOPPED, weight

REPORTS = "DMD_REPORTS"
"""Environment variable: where a supervisor leaves how its rank ended; a path, or STDERR."""
STDERR = "stderr"
_MARK = "dmd rank ended: "


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why a rank ended."""

    code: int
    """See `dmd.exit_codes`."""
    message: str = ""
    """One line for the user; empty where there is nothing to tell."""
    origin: int = 0
    """The rank whose end this is about; another one where this rank only follows it."""

    def json(self) -> str:
        """As one line of JSON, which `parse_ending` reads."""
        return json.dumps(asdict(self))


def parse_ending(text: str) -> Ending:
    """The ending that `Ending.json` has written."""
    return Ending(**json.loads(text))


def cause(endings: dict[int, Ending]) -> Ending:
    """The ending that tells why a training ended, of those of its ranks."""
    assert endings
    own_first = sorted(endings.items(), key=lambda item: (not item[1].message, item[0] != item[1].origin, item[0]))
    return max((ending for _, ending in own_first), key=lambda ending: weight(ending.code))


def show(ending: Ending) -> None:
    """Tell the user on stderr why a training ended, if there is anything to tell."""
    if ending.message:
        kind = "" if ending.code == STOPPED else "error: "
        _print(f"dmd train: {kind}{ending.message}")


def _print(line: str) -> None:
    """Write a line at once, newline and all: the ranks of a host share one stderr."""
    print(f"{line}\n", end="", file=sys.stderr, flush=True)


class Reporter:
    """The way of one rank's ending from its supervisor to whoever tells the user."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self._where = os.environ.get(REPORTS)
        self._file: int | None = None
        if self._where is not None and self._where != STDERR:
            try:
                self._file = os.open(self._where, os.O_WRONLY | os.O_APPEND)
            except OSError:  # the process that reads it has died
                self._where = None

    def report(self, ending: Ending, *, heard: bool) -> None:
        """Pass an ending on.

        Args:
            heard: `dmd train` lives, where it is a process of this host.
        """
        line = report_line(self.rank, ending)
        if self._where == STDERR:
            _print(line)
        elif self._file is not None and heard:
            os.write(self._file, f"{line}\n".encode())
        else:
            show(ending)


def report_line(rank: int, ending: Ending) -> str:
    """An ending as a line that `read_reports` finds among others."""
    return f"{_MARK}{rank} {ending.json()}"


def read_report(line: str) -> tuple[int, Ending] | None:
    """Rank and ending of a report; None for any other line. pdsh puts the host's name before each line."""
    _, mark, report = line.partition(_MARK)
    rank, _, text = report.partition(" ")
    if not mark or not rank.isdecimal():
        return None
    try:
        return int(rank), parse_ending(text)
    except (ValueError, TypeError):
        return None


def read_reports(lines: Iterable[str]) -> dict[int, Ending]:
    """The endings by rank."""
    return dict(report for line in lines if (report := read_report(line)) is not None)
