"""How a rank and its supervisor communicate: by memory and files that they share since they were one process."""

import ctypes
import json
import mmap
import os
from dataclasses import dataclass
from enum import IntEnum

from launch.supervision.ending import Ending, parse_ending
from launch.supervision.lost import StderrRelay

DEFAULT_PATIENCE = 5.0
"""Seconds between the stacks of a rank that hangs and its end, where no collective is under way."""


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


class _Shared(ctypes.Structure):
    """Memory of both processes; `Channels` says what its fields are."""

    _fields_ = (
        ("stop_asked", ctypes.c_bool),
        ("phase", ctypes.c_uint8),
        ("heartbeats", ctypes.c_uint64),
        ("patience_seconds", ctypes.c_double),
    )


class Channels:
    """What a rank and its supervisor share."""

    def __init__(self) -> None:
        self.stacks = os.memfd_create("stacks")
        """File descriptor to which the rank writes the stacks of its threads."""
        self.stderr = StderrRelay()
        self._notes = os.memfd_create("notes")
        self._shared = _Shared.from_buffer(mmap.mmap(-1, mmap.PAGESIZE))
        self.patience_seconds = DEFAULT_PATIENCE

    @property
    def stop_asked(self) -> bool:
        """Whether the supervisor has been asked to stop its rank."""
        return bool(self._shared.stop_asked)

    def ask_to_stop(self) -> None:
        """In the supervisor: ask the rank to stop."""
        self._shared.stop_asked = True

    @property
    def phase(self) -> Phase:
        """How far the rank has come."""
        return Phase(self._shared.phase)

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._shared.phase = phase

    @property
    def heartbeats(self) -> int:
        """How many the rank has given."""
        return int(self._shared.heartbeats)

    def count_heartbeat(self) -> None:
        """In the rank: it makes progress."""
        self._shared.heartbeats += 1

    @property
    def patience_seconds(self) -> float:
        """Seconds between the stacks of a rank that hangs and its end.

        While it trains, as long as a collective may take: one that began just before the stacks ends by itself.
        """
        return float(self._shared.patience_seconds)

    @patience_seconds.setter
    def patience_seconds(self, seconds: float) -> None:
        self._shared.patience_seconds = seconds

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
