"""One computational sequence: an HDF5 file `ROOT/data/VIDEO/{features [N, D], intervals [N, 2]}`.

Intervals are in seconds. As `mmsdk.mmdatasdk.computational_sequence` of
https://github.com/A2Zadeh/CMU-MultimodalSDK writes it. In files that the SDK has aligned, a video has several entries,
`VIDEO[0]`, `VIDEO[1]`, ..., one per segment or word; as in the SDK, their rows are put together again, in the order of
time. `ROOT/metadata` says nothing that is needed here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.durable import unreadable
from data_shards.file_kinds import HDF5_NAME, check_file_kind
from data_shards.sources.csd.alignment import EPSILON
from data_shards.sources.memory import free_memory

_TRANSFER = "restore it from where it came from"


@dataclass(frozen=True)
class Rows:
    """The rows of a video in one sequence, in the order of their starts."""

    intervals: NDArray[np.float64]
    """Start and end in seconds [N, 2]; each is longer than EPSILON."""
    features: NDArray[Any]
    """[N, D], numbers or (of words) texts."""
    without_length: int
    """Rows that were left out, since their interval is empty, reversed or not a number."""

    def __len__(self) -> int:
        return len(self.intervals)

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return self.intervals.nbytes + self.features.nbytes

    def pick(self, numbers: NDArray[np.int64]) -> "Rows":
        """Some of them, in the same order."""
        return Rows(self.intervals[numbers], self.features[numbers], self.without_length)


NO_ROWS = Rows(np.zeros((0, 2)), np.zeros((0, 1)), 0)


class CsdFile:
    """An open computational sequence; use it in a `with`, in one process."""

    def __init__(self, path: str | Path) -> None:
        """Open it.

        Raises:
            ValueError: no h5py, no HDF5 file, or one that is no computational sequence.
        """
        self.path = str(path)
        check_file_kind(path, "a computational sequence (.csd)", allowed=(HDF5_NAME,))
        try:
            import h5py
        except ImportError as error:
            raise ValueError(
                f"{path} is a computational sequence, which h5py reads: pip install 'dmd-cluster[csd]'"
            ) from error
        with self._readable():
            # without a lock: others may read it, and some shared storages have none
            self._file = h5py.File(path, "r", locking=False)
            roots = [name for name in self._file if self._file.get(f"{name}/data") is not None]
        if len(roots) != 1:
            self._file.close()
            raise ValueError(
                f"{path} is an HDF5 file and no computational sequence: it has {len(roots)} groups with `data` inside, "
                "and a .csd has one, ROOT/data/VIDEO/{features, intervals}"
            )
        self.root = roots[0]
        """The sequence's own name."""
        self._data = self._file[self.root]["data"]

    def __enter__(self) -> "CsdFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def entries(self) -> list[str]:
        """The names of all entries, in alphabetical order."""
        with self._readable():
            return sorted(self._data)

    def rows(self, keys: Sequence[str]) -> Rows | None:
        """The rows of some entries; None where none of them is there.

        Raises:
            ValueError: an entry that is not features and intervals, one row each.
        """
        entries = [self._entry(key) for key in keys if key in self._data]
        if not entries:
            return None
        widths = sorted({features.shape[1] for _, features in entries})
        if len(widths) > 1:
            raise ValueError(
                f"{self.path}: {keys[0]} has {widths[0]} features per row, and other entries of its video {widths[1]}; "
                f"{_TRANSFER}"
            )
        intervals = np.concatenate([part for part, _ in entries])
        features = np.concatenate([part for _, part in entries])
        known = intervals[:, 1] - intervals[:, 0] > EPSILON
        chosen = np.flatnonzero(known)[np.argsort(intervals[known, 0], kind="stable")]
        return Rows(intervals[chosen], features[chosen], int(len(known) - len(chosen)))

    def labels(self, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Intervals [N, 2] and labels [N, C] of an entry, in the order of the file, those without a length too."""
        intervals, features = self._entry(key)
        if features.dtype.kind not in "iuf" or not features.shape[1]:
            raise ValueError(
                f"{self.path}: {key} holds {features.dtype} {features.shape}; labels are numbers [segments, columns]"
            )
        return intervals, features.astype(np.float64)

    def _entry(self, key: str) -> tuple[NDArray[np.float64], NDArray[Any]]:
        with self._readable():
            entry = self._data[key]
            found = {name: entry.get(name) for name in ("intervals", "features")}
            missing = [name for name, value in found.items() if not hasattr(value, "shape")]
            if missing:
                raise ValueError(f"{self.path}: {key} lacks {missing[0]}; an entry is {{features, intervals}}")
            size = sum(value.size * value.dtype.itemsize for value in found.values())
            if size > free_memory() // 2:
                raise ValueError(
                    f"{self.path}: {key} unpacks to {size / 2**30:.1f} GiB, more than half of the memory that is free"
                )
            intervals, features = found["intervals"][()], found["features"][()]
        if intervals.shape == (2,):  # a single row, which some files have without its axis
            intervals, features = intervals[None], features[None]
        if intervals.dtype.kind not in "iuf" or intervals.ndim != 2 or intervals.shape[1] != 2:
            raise ValueError(
                f"{self.path}: the intervals of {key} are {intervals.dtype} {intervals.shape}; they must be numbers "
                "[rows, 2], start and end in seconds"
            )
        if features.ndim != 2:
            raise ValueError(f"{self.path}: the features of {key} have shape {features.shape}; they must be [rows, D]")
        if len(features) != len(intervals):
            raise ValueError(
                f"{self.path}: {key} has {len(features)} rows of features and {len(intervals)} intervals, so that "
                f"nothing says when they are; {_TRANSFER}, or leave the video out of --splits"
            )
        return intervals.astype(np.float64), features

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Name the file in errors of HDF5; of a storage that fails they are `Unreadable`."""
        try:
            yield
        except (OSError, RuntimeError, KeyError, TypeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise unreadable(self.path, error) from error
            cause = " ".join(str(error).split())[:300]
            raise ValueError(f"{self.path} cannot be read as HDF5: {cause}; {_TRANSFER}") from error


def without_number(key: str) -> str:
    """The video of an entry: `v` of `v[3]`, as the SDK splits it."""
    return key.split("[")[0]
