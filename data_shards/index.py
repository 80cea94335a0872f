"""The index of a set of shards: one Parquet row per sample, read a row group at a time.

`index.parquet` opens with any Parquet reader. Its metadata holds `dmd.info` (`DatasetInfo` as JSON) and
`dmd.row_groups` (where each row group ends, and its crc32). The footer is followed by its own sha256, in the place
where the format keeps a footer signature that other readers skip. So nothing is parsed before it is known to be
what was written, and opening an index of 10^8 rows costs what its footer costs.
"""

import hashlib
import json
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.index_format import INDEX_NAME, MAGIC, RECORD, ROWS_PER_GROUP, SCHEMA, TAIL, to_records
from data_shards.schema import DatasetInfo

_CACHED_GROUPS = 32
_REPAIR = "restore the file, or rebuild the shards with `dmd shard`"

Records = NDArray[np.void]


class ShardIndex:
    """An index opened for look-ups. Holds its metadata and a few row groups; picklable, and safe across fork."""

    def __init__(self, root: Path, info: DatasetInfo, groups: list[tuple[int, int]], footer: bytes) -> None:
        self.root = root
        self.info = info
        self._groups = groups
        self._footer = footer
        self._first_row = dict(zip(info.counts, np.cumsum([0, *info.counts.values()]).tolist(), strict=False))
        self._file: pa.NativeFile | None = None
        self._parquet: pq.ParquetFile | None = None
        self._cache: OrderedDict[int, Records] = OrderedDict()

    @classmethod
    def load(cls, path: str | Path) -> "ShardIndex":
        """Open the index of the shards in directory `path`; `ValueError` where it is missing or damaged."""
        root = Path(path)
        with _open(root) as file:
            footer = _footer(file, root / INDEX_NAME)
            metadata = pq.ParquetFile(file).metadata.metadata or {}
        try:
            info = DatasetInfo.from_json(metadata[b"dmd.info"].decode())
            groups = [(int(end), int(crc)) for end, crc in json.loads(metadata[b"dmd.row_groups"])]
        except KeyError as error:
            raise ValueError(f"{root / INDEX_NAME} is not an index of shards: it lacks {error}") from error
        except ValueError as error:
            raise ValueError(f"{root / INDEX_NAME}: {error}") from error
        return cls(root, info, groups, footer)

    def num_samples(self, split: str) -> int:
        """Samples of a split; 0 where the set lacks it."""
        return self.info.counts.get(split, 0)

    def shard_size(self, split: str) -> int:
        """Samples in every shard of the split but its last; what `epoch_order` wants."""
        self._known(split)
        return self.info.samples_per_shard

    def ids(self, split: str, positions: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """The data set's own names of the samples at `positions`."""
        return self.strings("id", split, positions)

    def strings(self, column: str, split: str, positions: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """A text column (`id` or `key`) at `positions` of a split."""
        rows = self._rows(split, positions)
        result = [""] * len(rows)
        for group in np.unique(rows // ROWS_PER_GROUP):
            values = self._read_group(int(group), [column]).column(column)
            for i in np.flatnonzero(rows // ROWS_PER_GROUP == group):
                result[i] = values[int(rows[i]) % ROWS_PER_GROUP].as_py()
        return result

    def records(self, split: str, positions: Sequence[int] | NDArray[np.integer]) -> Records:
        """What reading needs about the samples at `positions` of a split: an array of dtype RECORD."""
        rows = self._rows(split, positions)
        groups = rows // ROWS_PER_GROUP
        if not len(rows) or (groups == groups[0]).all():
            return self._group(int(groups[0]))[rows % ROWS_PER_GROUP] if len(rows) else np.empty(0, RECORD)
        result = np.empty(len(rows), RECORD)
        for group in np.unique(groups):
            chosen = groups == group
            result[chosen] = self._group(int(group))[rows[chosen] % ROWS_PER_GROUP]
        return result

    def close(self) -> None:
        """Give back the file handle; the next look-up opens it again."""
        if self._file is not None:
            self._file.close()
        self._file, self._parquet = None, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_parquet": None, "_cache": OrderedDict()}

    def _known(self, split: str) -> str:
        if split not in self.info.counts:
            raise ValueError(f"{self.root} has no {split} split; it has {', '.join(self.info.counts)}")
        return split

    def _rows(self, split: str, positions: Sequence[int] | NDArray[np.integer]) -> NDArray[np.int64]:
        wanted = np.asarray(positions, dtype=np.int64)
        count = self.info.counts[self._known(split)]
        if wanted.size and (wanted.min() < 0 or wanted.max() >= count):
            raise ValueError(f"{self.root}: a position is outside the {count} samples of {split}")
        return wanted + self._first_row[split]

    def _group(self, number: int) -> Records:
        records = self._cache.get(number)
        if records is None:
            columns = [name for name in SCHEMA.names if name not in ("split", "key", "id")]
            records = to_records(self._read_group(number, columns))
            self._cache[number] = records
            if len(self._cache) > _CACHED_GROUPS:
                self._cache.popitem(last=False)
        else:
            self._cache.move_to_end(number)
        return records

    def _read_group(self, number: int, columns: list[str]) -> pa.Table:
        """Some columns of a row group, after its bytes were found intact."""
        if self._file is None or self._parquet is None:
            self._file = _open(self.root)
            if _footer(self._file, self.root / INDEX_NAME) != self._footer:
                raise ValueError(f"{self.root} was rebuilt since its index was read; start again to use the new shards")
            self._parquet = pq.ParquetFile(self._file)
        end, crc = self._groups[number]
        start = self._groups[number - 1][0] if number else len(MAGIC)
        if zlib.crc32(self._file.read_at(end - start, start)) != crc:
            raise ValueError(
                f"{self.root / INDEX_NAME} is damaged in its rows from {number * ROWS_PER_GROUP}: {_REPAIR}"
            )
        return self._parquet.read_row_group(number, columns=columns, use_threads=False)


def _open(root: Path) -> pa.NativeFile:
    path = root / INDEX_NAME
    if not path.is_file():
        what = "is no directory" if not root.is_dir() else f"holds no {INDEX_NAME}"
        raise ValueError(f"{root} {what}: not a set of shards; make one with `dmd shard`")
    return pa.OSFile(str(path), "rb")


def _footer(file: pa.NativeFile, path: Path) -> bytes:
    """The sha256 of an index's footer, after it was found to be what the footer says it is."""
    size = file.size()
    tail = file.read_at(TAIL, size - TAIL) if size >= 2 * TAIL else b""
    length = int.from_bytes(tail[-8:-4], "little")
    if not tail.endswith(MAGIC) or not TAIL - 8 < length <= size - 8:
        raise ValueError(f"{path} is truncated or not an index of shards: {_REPAIR}")
    footer = file.read_at(length - (TAIL - 8), size - 8 - length)
    if hashlib.sha256(footer).digest() != tail[: TAIL - 8]:
        raise ValueError(f"{path} is damaged: its footer does not match its checksum; {_REPAIR}")
    return tail[: TAIL - 8]
