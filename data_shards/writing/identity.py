"""Ids that are there twice: found while samples pass by, in 16 bytes per sample, and named with both places.

Of an id 88 bits of its digest are kept, so ten million different ids are taken for a repeated one with a probability
of 10^-13. Digests lie in sorted runs whose sizes double, so n ids cost n log n and the first pair is found at once.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_POSITION_BITS = 40
REPAIR = "give every sample an id of its own, or number them with --ids number"


def numbered(name: str, split: str, number: int) -> str:
    """The id of sample `number` of a split under `--ids number`: the data's own id with the place behind it."""
    return f"{name}#{split}{number}" if name else f"{split}{number}"


@dataclass(frozen=True)
class _Block:
    """Ids that came together, and where they are."""

    first: int
    """Position of the first among all ids."""
    where: str
    """What errors call the place, such as `train`."""
    start: int
    """Number of the first inside that place."""
    split: str


@dataclass
class IdCheck:
    """Takes the ids of a set, block by block."""

    name: str
    """What errors call the set."""
    across: int = 0
    """How many pairs of samples in two splits have one id."""
    _blocks: list[_Block] = field(default_factory=list)
    _runs: list[tuple[NDArray[np.uint64], NDArray[np.uint64]]] = field(default_factory=list)
    """Sorted keys, and with each the rest of its digest and its position."""
    _count: int = 0
    _pair: str = ""

    def add(self, ids: Sequence[str], *, split: str, where: str, start: int) -> None:
        """Take the ids of samples `start`, `start + 1`, ... of a place.

        Raises:
            ValueError: an id that is there twice in a split; the first pair is named.
        """
        self._blocks.append(_Block(self._count, where, start, split))
        keys, rests = _digests(ids, self._count)
        self._count += len(ids)
        order = np.argsort(keys, kind="stable")
        keys, rests = keys[order], rests[order]
        pairs = _pairs((keys[:-1], rests[:-1]), (keys[1:], rests[1:]), np.arange(max(0, len(keys) - 1)))
        for run in self._runs:
            at = np.minimum(np.searchsorted(run[0], keys), len(run[0]) - 1)
            pairs += _pairs(run, (keys, rests), at)
        for former, later in sorted(pairs, key=lambda pair: pair[1]):
            self._report(ids[later - self._blocks[-1].first], former, later)
        self._merge(keys, rests)

    def finish(self) -> None:
        """Warn of ids that are in two splits: not ambiguous, as all work goes by split, but often a mistake."""
        if self.across:
            _log.warning(
                "warning: %s: %d pairs of samples in two splits have one id, the first is %s: if they are the same "
                "clips, a model is tested on what it was trained on; %s",
                self.name,
                self.across,
                self._pair,
                REPAIR,
            )

    def _report(self, name: str, former: int, later: int) -> None:
        there, here = self._place(former), self._place(later)
        if there[0] == here[0]:
            raise ValueError(f"{self.name}: the id {name!r} is there twice: {there[1]} and {here[1]}; {REPAIR}")
        self.across += 1
        self._pair = self._pair or f"{name!r}: {there[1]} and {here[1]}"

    def _place(self, position: int) -> tuple[str, str]:
        """The split of a position, and its place in words."""
        block = next(block for block in reversed(self._blocks) if block.first <= position)
        return block.split, f"{block.where} sample {block.start + position - block.first}"

    def _merge(self, keys: NDArray[np.uint64], rests: NDArray[np.uint64]) -> None:
        """Keep a run, and join the last two while they are of a size."""
        if len(keys):
            self._runs.append((keys, rests))
        while len(self._runs) > 1 and len(self._runs[-1][0]) * 2 > len(self._runs[-2][0]):
            last, before = self._runs.pop(), self._runs.pop()
            joined = np.concatenate([before[0], last[0]]), np.concatenate([before[1], last[1]])
            order = np.argsort(joined[0], kind="stable")
            self._runs.append((joined[0][order], joined[1][order]))


def _digests(ids: Sequence[str], first: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """64 bits of each id's digest; and 24 more of them above its position."""
    raw = b"".join(hashlib.blake2b(name.encode(), digest_size=16).digest() for name in ids)
    halves = np.frombuffer(raw, dtype="<u8").reshape(-1, 2)
    positions = np.arange(first, first + len(ids), dtype=np.uint64)
    shift = np.uint64(_POSITION_BITS)
    return halves[:, 0].astype(np.uint64), (halves[:, 1] >> shift << shift) | positions


def _pairs(
    former: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    later: tuple[NDArray[np.uint64], NDArray[np.uint64]],
    at: NDArray[np.intp],
) -> list[tuple[int, int]]:
    """Positions of `former[at[i]]` and `later[i]` where both are the same id."""
    shift = np.uint64(_POSITION_BITS)
    same = (former[0][at] == later[0]) & (former[1][at] >> shift == later[1] >> shift)
    mask = np.uint64((1 << _POSITION_BITS) - 1)
    places = [(rests & mask).astype(np.int64).tolist() for rests in (former[1][at][same], later[1][same])]
    return list(zip(*places, strict=True))
