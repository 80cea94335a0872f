"""How a rank and its supervisor communicate: by memory and files that they share since they were one process."""

import json
import mmap
import os
from dataclasses import dataclass
from enum import IntEnum

from launch.supervision.ending import Ending, parse_ending
from launch.supervision.lost import StderrRelay


class Phase(IntEnum):
    """How far a rank has come."""

    STARTING = 0
    """No other rank knows of it: it may be killed."""
    JOINING = 1
    """Others may be waiting for it, and it has nothing to save. It obeys a request to stop within a second."""
    TRAINING = 2
    """It looks for requests to stop at step boundaries."""


@dataclass(frozen=True)
class Notes:
    """The endings that a rank has noted for its supervisor."""

    own: Ending | None
    """How the rank ends."""
    cause: Ending | None
    """How another rank has ended, which explains an error of this one."""


class Channels:
    """What a rank and its supervisor share."""

    def __init__(self) -> None:
        self.stacks = os.memfd_create("stacks")
        """File descriptor to which the rank writes the stacks of its threads."""
        self.stderr = StderrRelay()
        self._notes = os.memfd_create("notes")
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        """Byte 0: whether the rank is to stop. Byte 1: its phase."""

    @property
    def stop_asked(self) -> bool:
        """Whether the supervisor has been asked to stop its rank."""
        return self._page[0] != 0

    def ask_to_stop(self) -> None:
        """In the supervisor: ask the rank to stop."""
        self._page[0] = 1

    @property
    def phase(self) -> Phase:
        """How far the rank has come."""
        return Phase(self._page[1])

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._page[1] = phase

    def note_ending(self, ending: Ending) -> None:
        """In the rank: this is how it ends."""
        self._note("ending", ending)

    def note_cause(self, ending: Ending) -> None:
        """In the rank: this is how another one has ended, which explains an error of this one."""
        self._note("cause", ending)

    def notes(self) -> Notes:
        """What has been noted so far."""
        lines = os.pread(self._notes, os.fstat(self._notes).st_size, 0).decode().splitlines()
        notes = dict(json.loads(line) for line in lines)
        own, cause = (parse_ending(notes[kind]) if kind in notes else None for kind in ("ending", "cause"))
        return Notes(own, cause)

    def _note(self, kind: str, ending: Ending) -> None:
        os.write(self._notes, f"{json.dumps([kind, ending.json()])}\n".encode())
