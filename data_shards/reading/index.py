"""Look-ups in the index of a set of shards: from split and position to where a sample is and what it is.

Only the row groups in use are held in memory, so an index of 10^8 samples takes no more memory than one of 10^5.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_shards.durable import as_unreadable
from data_shards.format.index_file import ROWS_PER_GROUP, IndexFile, record_dtype, to_records
from data_shards.labels import LabelFacts
from data_shards.places import PlaceLike
from data_shards.storage.store import Store, open_store

_CACHED_GROUPS = 32
_CACHED_STRINGS = 4
_TEXT_COLUMNS = ("split", "key", "id")

Records = NDArray[np.void]
Positions = Sequence[int] | NDArray[np.integer[Any]]


class ShardIndex:
    """An index opened for look-ups. Holds its facts and a few row groups; picklable, safe across fork and threads."""

    def __init__(self, store: Store) -> None:
        """Open the index of a store; `ValueError` where it is missing or damaged."""
        self.store = store
        self.root = store.place
        """The directory or URL of the set, for messages and records."""
        with as_unreadable(store.place):
            self._path = store.index()
            self._file: IndexFile | None = IndexFile(self._path)
        self._tail = self._file.tail
        self.info = self._file.info
        self._first_row = dict(zip(self.info.counts, np.cumsum([0, *self.info.counts.values()]).tolist(), strict=False))
        self._records = _LruCache(_CACHED_GROUPS)
        self._strings = _LruCache(_CACHED_STRINGS)

    @classmethod
    def load(cls, path: PlaceLike) -> "ShardIndex":
        """Open the index of the shards at a directory or URL; `ValueError` where it is missing or damaged."""
        return cls(open_store(path))

    def num_samples(self, split: str) -> int:
        """Samples of a split; 0 where the set lacks it."""
        return self.info.counts.get(split, 0)

    def shard_size(self, split: str) -> int:
        """Samples in every shard of the split but its last; what `epoch_order` wants."""
        self._check_split(split)
        return self.info.samples_per_shard

    def ids(self, split: str, positions: Positions) -> list[str]:
        """The data set's own names of the samples at `positions`."""
        return self.strings("id", split, positions)

    def strings(self, column: str, split: str, positions: Positions) -> list[str]:
        """A text column (`id` or `key`) at `positions` of a split."""
        rows = self._rows(split, positions)
        groups = rows // ROWS_PER_GROUP
        result = np.empty(len(rows), dtype=object)
        for group in np.unique(groups).tolist():
            values = self._strings.get((group, column), lambda key: self._column(*key))
            chosen = groups == group
            result[chosen] = values.take(_to_arrow(rows[chosen] % ROWS_PER_GROUP)).to_pylist()
        return list(result)

    def records(self, split: str, positions: Positions) -> Records:
        """Where the samples at `positions` of a split are, and their numbers: an array of a `record_dtype`."""
        rows = self._rows(split, positions)
        groups = rows // ROWS_PER_GROUP
        if len(rows) and (groups == groups[0]).all():
            return self._group(int(groups[0]))[rows % ROWS_PER_GROUP]
        result = np.empty(len(rows), record_dtype(len(self.info.emotions)))
        for group in np.unique(groups).tolist():
            chosen = groups == group
            result[chosen] = self._group(group)[rows[chosen] % ROWS_PER_GROUP]
        return result

    def label_facts(self, split: str) -> LabelFacts:
        """What the labels of a split are. The index of an older program lacks that; then all its rows are read."""
        if split in self.info.labels:
            return self.info.labels[split]
        facts = LabelFacts()
        for start in range(0, self.num_samples(split), ROWS_PER_GROUP):
            rows = self.records(split, np.arange(start, min(start + ROWS_PER_GROUP, self.num_samples(split))))
            facts |= LabelFacts.of_rows(rows)
        return facts

    def close(self) -> None:
        """Close the file; the next look-up opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def _check_split(self, split: str) -> None:
        if split not in self.info.counts:
            raise ValueError(f"{self.root} has no {split} split; it has {', '.join(self.info.counts)}")

    def _rows(self, split: str, positions: Positions) -> NDArray[np.int64]:
        wanted = np.asarray(positions, dtype=np.int64)
        self._check_split(split)
        count = self.info.counts[split]
        if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
            raise ValueError(f"{self.root}: a position is outside the {count} samples of {split}")
        return wanted + self._first_row[split]

    def _group(self, number: int) -> Records:
        records: Records = self._records.get(number, self._read_records)
        return records

    def _read_records(self, group: int) -> Records:
        file = self._opened()
        records = to_records(file.read_group(group, [name for name in file.schema.names if name not in _TEXT_COLUMNS]))
        if len(records) and not 0 <= records["shard"].min() <= records["shard"].max() < len(self.info.shards):
            raise ValueError(f"{self.root}: the index names a shard that it does not list; rebuild with `dmd shard`")
        return records

    def _column(self, group: int, column: str) -> pa.ChunkedArray:
        return self._opened().read_group(group, [column]).column(column)

    def _opened(self) -> IndexFile:
        if self._file is None:
            self._file = IndexFile(self._path)
            if self._file.tail != self._tail:
                self._file = None
                raise ValueError(f"{self.root} was rebuilt since its index was read; start again to use the new shards")
        return self._file


class _LruCache:
    """A cache of a limited number of entries, least recently used first to go; may be shared by threads. Pickles as an
    empty one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[Any, Any] = OrderedDict()

    def __reduce__(self) -> tuple[type["_LruCache"], tuple[int]]:
        return _LruCache, (self._limit,)

    def get(self, key: Any, make: Callable[[Any], Any]) -> Any:
        """The entry of a key; `make(key)` where there is none yet."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            else:
                self._entries[key] = make(key)
                if len(self._entries) > self._limit:
                    self._entries.popitem(last=False)
            return self._entries[key]


def _to_arrow(numbers: NDArray[np.int64]) -> pa.Int64Array:
    """Numbers for Arrow; its own conversion would import pandas, which takes long."""
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])
