"""Which training a note about a tracker is of.

A training that begins anew in the same directory is another one, and so is a copy of a run: two trainings in one run of
a tracker would mix their numbers. A run that was moved, or that is reached by another path, stays the same: its
directory is the same file (inode). Where a network file system numbers its files anew, the path says it.
"""

from dataclasses import dataclass
from pathlib import Path

from dmd.documents import read_document


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A training, and where its run is."""

    path: str
    inode: int
    begun: str
    """Number and time of the session that began it."""

    def same_training(self, other: "Origin") -> bool:
        """Whether both are of one training, or of copies of it."""
        return self.begun == other.begun

    def same_run(self, other: "Origin") -> bool:
        """Whether both are of one training in one directory."""
        return self.same_training(other) and (self.path == other.path or self.inode == other.inode)


def origin(run: Path) -> Origin:
    """That of the training in a run directory. Raises ValueError for a damaged run.json, OSError as reading it does."""
    sessions = read_document(run)["sessions"]
    first = max((number for number, session in enumerate(sessions) if session.get("resume_step") is None), default=0)
    started = sessions[first].get("started") if sessions else None
    return Origin(path=str(run.absolute()), inode=run.stat().st_ino, begun=f"{first} {started}")
