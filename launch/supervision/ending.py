"""How ranks end: what a rank reports at its end, how the report reaches the user, and which ending is the cause.

A rank leaves an `Ending` with its supervisor, which reports it to `dmd train`: on the same host in a file of that
process (REPORTS names it), through ssh as a line of stderr. `dmd train` prints one line, its last one, for all of its
ranks. Where it does not run, or no longer, the supervisor prints the ending itself.
"""

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from data_shards.terminal import clear
from dmd.exit_codes import STOPPED, severity

REPORTS = "DMD_REPORTS"
"""Environment variable: where a supervisor reports how its rank ended; a path, or STDERR."""
STDERR = "stderr"
MADE_RUN = "DMD_MADE_RUN"
"""Environment variable: the run directory, where `dmd train` has made its name."""
_PREFIX = "dmd rank ended: "
SAME_COMMAND = "the same command"
"""What goes on, in messages; where the name of a run was made, `continued` in its place names the run."""
CONTINUES = f"; {SAME_COMMAND} continues"
"""How a message ends that is no mistake of the user's."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why a rank ended."""

    code: int
    """See `dmd.exit_codes`."""
    message: str = ""
    """One line for the user; may be empty."""
    origin: int = 0
    """The rank whose failure came first; may differ from the reporting rank."""

    def json(self) -> str:
        """As one line of JSON, which `parse_ending` reads."""
        return json.dumps(asdict(self))


def parse_ending(text: str) -> Ending:
    """The ending that `Ending.json` has written."""
    return Ending(**json.loads(text))


def cause(endings: dict[int, Ending]) -> Ending:
    """The ending that says why a training ended: of the highest severity, and if possible with a message
    and of its own rank."""
    assert endings

    def preference(rank: int) -> tuple[int, bool, bool, int]:
        ending = endings[rank]
        return severity(ending.code), bool(ending.message), ending.origin == rank, -rank

    return endings[max(endings, key=preference)]


def reason(ending: Ending) -> str:
    """Why a training ended, without what the same command would do."""
    return ending.message.removesuffix(CONTINUES) or f"exit code {ending.code}"


def given_up(ending: Ending, restarts: int) -> Ending:
    """The ending of a training that had so many restarts and gets no more."""
    message = f"{reason(ending)}; given up after {restarts} restart{'s' * (restarts > 1)}{CONTINUES}"
    return replace(ending, message=message)


def continued(ending: Ending, run: Path) -> Ending:
    """An ending whose message says how the training goes on in a run that the command has not named."""
    how = f"the command with --run {run}"
    if SAME_COMMAND in ending.message:
        return replace(ending, message=ending.message.replace(SAME_COMMAND, how))
    return replace(ending, message=f"{ending.message}; {how} continues" if ending.message else "")


def print_ending(ending: Ending) -> None:
    """Print to stderr why a training ended, if there is a message."""
    if ending.message:
        kind = "" if ending.code == STOPPED else "error: "
        _print_line(f"dmd train: {kind}{ending.message}")


def _print_line(line: str) -> None:
    """Write a line with its newline in one write: the ranks of a host share one stderr."""
    print(f"{clear(sys.stderr)}{line}\n", end="", file=sys.stderr, flush=True)


class Reporter:
    """Reports the ending of one rank, in its supervisor."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self._address = os.environ.get(REPORTS)
        self._file: int | None = None
        if self._address is not None and self._address != STDERR:
            try:
                self._file = os.open(self._address, os.O_WRONLY | os.O_APPEND)
            except OSError:  # the process that reads it has died
                self._address = None

    def report(self, ending: Ending, *, wrapper_alive: bool) -> None:
        """Report an ending.

        Args:
            wrapper_alive: whether `dmd train` still runs, where it is a process of this host.
        """
        line = report_line(self.rank, ending)
        if self._address == STDERR:
            _print_line(line)
        elif self._file is not None and wrapper_alive:
            os.write(self._file, f"{line}\n".encode())
        else:
            made = os.environ.get(MADE_RUN)
            print_ending(continued(ending, Path(made)) if made and SAME_COMMAND in ending.message else ending)


def report_line(rank: int, ending: Ending) -> str:
    """An ending as a line that `read_reports` finds among others."""
    return f"{_PREFIX}{rank} {ending.json()}"


def read_report(line: str) -> tuple[int, Ending] | None:
    """Rank and ending of a report; None for any other line. pdsh puts the host's name before each line."""
    _, prefix, report = line.partition(_PREFIX)
    rank, _, text = report.partition(" ")
    if not prefix or not rank.isdecimal():
        return None
    try:
        return int(rank), parse_ending(text)
    except (ValueError, TypeError):
        return None


def read_reports(lines: Iterable[str]) -> dict[int, Ending]:
    """The endings by rank."""
    return dict(report for line in lines if (report := read_report(line)) is not None)
