"""What a rank and its supervisor tell each other: memory and files that the two share since they were one process."""

import json
import mmap
import os
from enum import IntEnum

from launch.supervision.ending import Ending, parse_ending
from launch.supervision.lost import ErrorRelay


class Phase(IntEnum):
    """How far a rank has come."""

    STARTING = 0
    """Nobody knows it yet: it may be killed."""
    JOINING = 1
    """Others may be waiting for it; it has saved nothing. It answers a stop request within a second."""
    TRAINING = 2
    """It asks for stop requests at step boundaries."""


class Channels:
    """The ways between a rank and its supervisor."""

    def __init__(self) -> None:
        self.stacks = os.memfd_create("stacks")
        """File descriptor that takes the stacks of threads."""
        self.errors = ErrorRelay()
        self._notes = os.memfd_create("notes")
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

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
        """In the rank: this is how another one has ended, which explains what may befall this one."""
        self._note("cause", ending)

    def noted(self) -> tuple[Ending | None, Ending | None]:
        """The rank's own ending and that of another one, as far as they were noted."""
        lines = os.pread(self._notes, os.fstat(self._notes).st_size, 0).decode().splitlines()
        notes = dict(json.loads(line) for line in lines)
        own, other = (parse_ending(notes[kind]) if kind in notes else None for kind in ("ending", "cause"))
        return own, other

    def _note(self, kind: str, ending: Ending) -> None:
        os.write(self._notes, f"{json.dumps([kind, ending.json()])}\n".encode())
