"""What computational sequences hold of a segment: its rows, aligned to words or not."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.format.schema import MODALITIES
from data_shards.sources.conversions import to_text
from data_shards.sources.csd.alignment import Timeline, means
from data_shards.sources.csd.files import NO_ROWS, CsdFile, Rows
from data_shards.sources.csd.segments import Segment

Align = Literal["words", "none"]
_PAUSE = "sp"
"""What the SDK's words have for a short pause."""


@dataclass(frozen=True, kw_only=True)
class Content:
    """What there is of a segment."""

    arrays: dict[str, NDArray[Any]]
    """Modality -> [T, D], for those that it has; of a data set without features of text, its words [T, 1]."""
    words_without: dict[str, int]
    """Modality -> words that no row of it belongs to."""
    raw_text: str


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """The files of a data set. Picklable; each process opens them itself."""

    paths: dict[str, Path]
    """Role (`roles.ROLES`) -> file."""
    align: Align
    entries: dict[str, dict[str, tuple[str, ...]]]
    """Role -> video -> its entries, for files that have several per video."""
    by_segment: frozenset[str]
    """Roles whose entries are those of the labels, so that each has the rows of one segment."""

    @property
    def roles(self) -> dict[str, str]:
        """Modality -> the role that its rows come from; text without features is the words."""
        return {m: "words" if m == "text" and m not in self.paths else m for m in MODALITIES}

    def open(self, stack: ExitStack) -> "ContentReader":
        """Open all files but the labels, until the stack is left."""
        files = {role: stack.enter_context(CsdFile(path)) for role, path in self.paths.items() if role != "labels"}
        return ContentReader(self, files)


class ContentReader:
    """Reads segments; holds the rows of one video."""

    def __init__(self, sequences: Sequences, files: dict[str, CsdFile]) -> None:
        self._sequences = sequences
        self._files = files
        self._entries: dict[str, Sequence[str]] = {}
        """Role -> the entries that its rows come from."""
        self._timelines: dict[str, Timeline] = {}
        self.rows: dict[str, Rows] = {}
        """Role -> the rows of the segment's video, where it has any entry; words without pauses."""
        self.fresh: list[str] = []
        """Roles whose rows are other than those of the segment before."""

    def read(self, segment: Segment) -> Content:
        """What there is of a segment.

        Raises:
            ValueError: a file that cannot be read, or rows that are not what their role needs.
        """
        self.fresh = [role for role in self._files if self._load(role, segment)]
        raw_text = " ".join(to_text(word) for word in self._inside("words", segment).features[:, 0].tolist())
        words = self._inside(self._sequences.roles["text"], segment)
        arrays = {"text": words.features} if len(words) else {}
        words_without: dict[str, int] = {}
        for m in ("audio", "vision"):
            if self._sequences.align == "none":
                array, without = self._inside(m, segment).features, 0
            else:
                array, without = self._means(m, words.intervals)
            if len(array) > without:
                arrays[m], words_without[m] = array, without
        return Content(arrays=arrays, words_without=words_without, raw_text=raw_text)

    def _means(self, m: str, words: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
        """The mean of a modality's rows for each word [W, D], and how many words have no row."""
        if m not in self.rows:
            return np.zeros((0, 1)), 0
        return means(self._timelines[m], self.rows[m].features, words)

    def _load(self, role: str, segment: Segment) -> bool:
        """Read the rows of a role, unless they are those of the segment before; whether it has."""
        entries = self._entries_of(role, segment)
        if self._entries.get(role) == entries:
            return False
        self.rows.pop(role, None)  # before those of another video take their memory
        self._timelines.pop(role, None)
        self._entries[role] = entries
        rows = self._files[role].rows(entries)
        if rows is not None:
            _check_kind(rows, role, f"{self._files[role].path}: {entries[0]}")
            self.rows[role] = rows = _without_pauses(rows) if role == "words" else rows
            self._timelines[role] = Timeline(rows.intervals)
        return True

    def _entries_of(self, role: str, segment: Segment) -> Sequence[str]:
        """The entries of a file that a segment's rows come from: its own where there are such, else its video's."""
        if role in self._sequences.by_segment:
            return (segment.entry,)
        entries = self._sequences.entries.get(role)
        return (segment.video,) if entries is None else entries.get(segment.video, ())

    def _inside(self, role: str, segment: Segment) -> Rows:
        """A role's rows that belong to a segment."""
        if role not in self.rows:
            return NO_ROWS
        return self.rows[role].pick(self._timelines[role].inside(segment.start, segment.stop))


def _without_pauses(words: Rows) -> Rows:
    spoken = [to_text(word) != _PAUSE for word in words.features[:, 0].tolist()]
    return words.pick(np.flatnonzero(spoken))


def _check_kind(rows: Rows, role: str, where: str) -> None:
    """Raise ValueError for features that are not numbers, and for words that are."""
    is_number = rows.features.dtype.kind in "iuf"
    if role == "words" and is_number:
        raise ValueError(f"{where} holds {rows.features.dtype}, not words; name another file with --csd words=FILE")
    if role != "words" and not is_number:
        hint = " (of words themselves say words=FILE; text=FILE are their vectors)" if role == "text" else ""
        raise ValueError(
            f"{where} holds {rows.features.dtype}, not numbers{hint}; name another file with --csd {role}=FILE"
        )
