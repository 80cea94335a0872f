"""Duplicate ids: found while samples pass by, in 16 bytes per sample, and reported with both places.

Of each id 88 bits of a digest are stored, so among ten million different ids a duplicate is reported wrongly with a
probability of 10^-13. Digests are held in sorted runs whose sizes double, so n ids cost n log n, and a duplicate is
found as soon as it is added.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FileOf = Callable[[str, int], str]
"""The file that a sample, given by split and number, comes from."""
_log = logging.getLogger(__name__)
_POSITION_BITS = 40
SUGGESTED_FIX = "give every sample an id of its own, or number them with --ids number"


def numbered_id(name: str, split: str, number: int) -> str:
    """The id of sample `number` of a split under `--ids number`: the data's own id, then split and number."""
    return f"{name}#{split}{number}" if name else f"{split}{number}"


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Ids that were added together, and where they are."""

    first: int
    """Position of the first among all ids."""
    where: str
    """What errors call the place, such as `train`."""
    start: int
    """Number of the first inside that place."""
    split: str

    def number(self, position: int) -> int:
        """The number of an id in that place."""
        return self.start + position - self.first


@dataclass(frozen=True)
class _Digests:
    """Digests of some ids [N], and the position of each."""

    keys: NDArray[np.uint64]
    """The first 64 bits of each digest."""
    rests: NDArray[np.uint64]
    """24 more bits of each digest, above its position in the lower 40."""

    @classmethod
    def of(cls, ids: Sequence[str], first: int) -> "_Digests":
        """Digests of ids whose positions count up from `first`."""
        raw = b"".join(hashlib.blake2b(name.encode(), digest_size=16).digest() for name in ids)
        halves = np.frombuffer(raw, dtype="<u8").reshape(-1, 2)
        positions = np.arange(first, first + len(ids), dtype=np.uint64)
        shift = np.uint64(_POSITION_BITS)
        return cls(halves[:, 0].astype(np.uint64), (halves[:, 1] >> shift << shift) | positions)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, chosen: slice | NDArray[np.intp]) -> "_Digests":
        return _Digests(self.keys[chosen], self.rests[chosen])

    def sorted_by_key(self) -> "_Digests":
        """The same digests in the order of their keys."""
        return self[np.argsort(self.keys, kind="stable")]

    def joined(self, later: "_Digests") -> "_Digests":
        """These digests and later ones, sorted."""
        keys = np.concatenate([self.keys, later.keys])
        rests = np.concatenate([self.rests, later.rests])
        return _Digests(keys, rests).sorted_by_key()

    def nearest(self, others: "_Digests") -> "_Digests":
        """For each of some other digests, the first one here that is not smaller; these must be sorted."""
        return self[np.minimum(np.searchsorted(self.keys, others.keys), len(self) - 1)]

    def duplicates(self, later: "_Digests") -> list[tuple[int, int]]:
        """Positions (here, there) of the entries `i` that are the same id on both sides."""
        shift = np.uint64(_POSITION_BITS)
        same = (self.keys == later.keys) & (self.rests >> shift == later.rests >> shift)
        mask = np.uint64((1 << _POSITION_BITS) - 1)
        here, there = ((rests[same] & mask).astype(np.int64).tolist() for rests in (self.rests, later.rests))
        return list(zip(here, there, strict=True))


@dataclass
class DuplicateIdCheck:
    """Takes the ids of a set, block by block."""

    name: str
    """What errors call the set."""
    file_of: FileOf | None = None
    """Names the file of a sample, where there are many."""
    across_splits: int = 0
    """How many pairs of samples in two splits have one id."""
    _blocks: list[_Block] = field(default_factory=list)
    _runs: list[_Digests] = field(default_factory=list)
    """Sorted; each at least twice as long as the next."""
    _count: int = 0
    _first_pair: str = ""
    """The first such pair, in words."""

    def add(self, ids: Sequence[str], *, split: str, where: str, start: int) -> None:
        """Take the ids of samples `start`, `start + 1`, ... of a place.

        Raises:
            ValueError: a duplicate id within a split; the first pair is named.
        """
        block = _Block(first=self._count, where=where, start=start, split=split)
        self._blocks.append(block)
        digests = _Digests.of(ids, self._count).sorted_by_key()
        self._count += len(ids)
        pairs = digests[:-1].duplicates(digests[1:])
        for run in self._runs:
            pairs += run.nearest(digests).duplicates(digests)
        for earlier, later in sorted(pairs, key=lambda pair: pair[1]):
            self._report(ids[later - block.first], earlier, later)
        self._add_run(digests)

    def finish(self) -> None:
        """Warn of ids that are in two splits: allowed, as all work goes by split, but often a mistake."""
        if self.across_splits:
            _log.warning(
                "warning: %s: %d pairs of samples in two splits have one id, the first is %s: if they are the same "
                "clips, a model is tested on what it was trained on; %s",
                self.name,
                self.across_splits,
                self._first_pair,
                SUGGESTED_FIX,
            )

    def _report(self, name: str, earlier: int, later: int) -> None:
        """Raise ValueError for a duplicate within a split; count one across two splits."""
        there, here = self._block(earlier), self._block(later)
        places = f"{self._place(there, earlier)} and {self._place(here, later)}"
        if there.split == here.split:
            raise ValueError(f"{self.name}: the id {name!r} is there twice: {places}; {SUGGESTED_FIX}")
        self.across_splits += 1
        self._first_pair = self._first_pair or f"{name!r}: {places}"

    def _place(self, block: _Block, position: int) -> str:
        """Where an id is, in words."""
        number = block.number(position)
        file = f" ({self.file_of(block.split, number)})" if self.file_of else ""
        return f"{block.where} sample {number}{file}"

    def _block(self, position: int) -> _Block:
        return next(block for block in reversed(self._blocks) if block.first <= position)

    def _add_run(self, digests: _Digests) -> None:
        """Store a run, and join the last two until each is at least twice as long as the next."""
        if len(digests):
            self._runs.append(digests)
        while len(self._runs) > 1 and len(self._runs[-1]) * 2 > len(self._runs[-2]):
            last = self._runs.pop()
            self._runs.append(self._runs.pop().joined(last))
