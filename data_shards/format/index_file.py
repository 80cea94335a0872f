"""The file that holds an index: a Parquet table whose every byte is covered by a checksum.

Any Parquet reader opens `index.parquet`. Its metadata holds `dmd.info` (`DatasetInfo` as JSON) and `dmd.row_groups`
(where each row group ends, and its crc32). The footer is followed by its own sha256, in the place of a footer
signature, which other readers skip. So checksums are compared before anything is parsed, and opening an index of 10^8
rows reads its footer alone.
"""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.format.schema import MEMBERS, MODALITIES, DatasetInfo

INDEX_NAME = "index.parquet"
MAGIC = b"PAR1"
ROWS_PER_GROUP = 16384
TAIL_BYTES = hashlib.sha256().digest_size + 8
"""Bytes at the end of an index: the footer's sha256, its length and the magic word."""

_SCHEMA = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        *(pa.field(f"{member}_offset", pa.int64(), nullable=False) for member in MEMBERS),
        *(pa.field(f"{member}_size", pa.int64(), nullable=False) for member in MEMBERS),
        *(pa.field(f"{member}_crc32", pa.uint32(), nullable=False) for member in MEMBERS),
        pa.field("label", pa.float32(), nullable=False),
        *(pa.field(f"{modality}_length", pa.int32(), nullable=False) for modality in MODALITIES),
    ]
)
"""`shard` counts the shards in the order of the metadata; offsets are of a member's content in its tar."""
_SUGGESTED_FIX = "restore the file, or rebuild the shards with `dmd shard`"


def index_schema(*, classes: bool, emotions: int) -> pa.Schema:
    """The columns of an index.

    Args:
        classes: whether samples have class labels.
        emotions: how many emotions a sample has or has not.
    """
    schema = _SCHEMA
    if classes:
        schema = schema.append(pa.field("class", pa.int32(), nullable=False))
    if emotions:
        flag = pa.field("item", pa.uint8(), nullable=False)
        schema = schema.append(pa.field("emotions", pa.list_(flag, emotions), nullable=False))
    return schema


def record_dtype(emotions: int) -> np.dtype[np.void]:
    """One sample as the reader needs it: the numeric columns of a row; `class` is -1 where the set has no class labels.

    Args:
        emotions: how many emotions a sample has or has not, as `emotions` [L] of the record.
    """
    return np.dtype(
        [
            ("shard", np.int32),
            ("offset", np.int64, len(MEMBERS)),
            ("size", np.int64, len(MEMBERS)),
            ("crc32", np.uint32, len(MEMBERS)),
            ("label", np.float32),
            ("length", np.int32, len(MODALITIES)),
            ("class", np.int32),
            ("emotions", np.uint8, (emotions,)),
        ]
    )


def to_records(table: pa.Table) -> NDArray[np.void]:
    """The numeric columns of index rows as one array of a `record_dtype`."""
    flags = table.column("emotions") if "emotions" in table.column_names else None
    records = np.empty(len(table), record_dtype(flags.type.list_size if flags is not None else 0))
    records["class"] = -1
    if flags is not None:
        records["emotions"] = flags.combine_chunks().flatten().to_numpy().reshape(records["emotions"].shape)
    for name in {"shard", "label", "class"} & set(table.column_names):
        records[name] = _values(table, name)
    for name, parts in (("offset", MEMBERS), ("size", MEMBERS), ("crc32", MEMBERS), ("length", MODALITIES)):
        for i, part in enumerate(parts):
            records[name][:, i] = _values(table, f"{part}_{name}")
    return records


def _values(table: pa.Table, name: str) -> NDArray[Any]:
    """A column without gaps as an array; arrow's own conversion would import pandas, which takes long."""
    array = table.column(name).combine_chunks()
    if not len(array):
        return np.empty(0)
    dtype = np.dtype(array.type.to_pandas_dtype())
    return np.frombuffer(array.buffers()[1], dtype, count=len(array), offset=array.offset * dtype.itemsize)


class IndexFile:
    """An index file opened for reading; safe across fork, as nothing reads at a shared position."""

    def __init__(self, path: Path, *, name: str = "") -> None:
        """Open it; `name` is what errors call it. `ValueError` where its footer is damaged."""
        self._name = name or str(path)
        self._file = pa.OSFile(str(path), "rb")
        size = self._file.size()
        self.tail: bytes = self._file.read_at(TAIL_BYTES, size - TAIL_BYTES) if size >= 2 * TAIL_BYTES else b""
        """The last bytes, which identify the content: the footer's sha256, its length and the magic word."""
        length = int.from_bytes(self.tail[-8:-4], "little")
        if not self.tail.endswith(MAGIC) or not TAIL_BYTES - 8 < length <= size - 8:
            raise ValueError(f"{self._name} is truncated or not an index of shards: {_SUGGESTED_FIX}")
        footer = self._file.read_at(length - (TAIL_BYTES - 8), size - 8 - length)
        if hashlib.sha256(footer).digest() != self.tail[: TAIL_BYTES - 8]:
            raise ValueError(f"{self._name} is damaged: its footer does not match its checksum; {_SUGGESTED_FIX}")
        self._parquet = pq.ParquetFile(self._file)
        metadata = self._parquet.metadata.metadata or {}
        try:
            self.info = DatasetInfo.from_json(metadata[b"dmd.info"].decode())
            self._groups = [(int(end), int(crc)) for end, crc in json.loads(metadata[b"dmd.row_groups"])]
        except KeyError as error:
            raise ValueError(f"{self._name} is not an index of shards: it lacks {error}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{self._name}: {error}") from error
        rows = sum(self.info.counts.values())
        self.schema = index_schema(classes=bool(self.info.classes), emotions=len(self.info.emotions))
        """The columns of the table."""
        groups_match = len(self._groups) == self._parquet.num_row_groups == -(-rows // ROWS_PER_GROUP)
        if (
            not groups_match
            or self._parquet.metadata.num_rows != rows
            or not self._parquet.schema_arrow.equals(self.schema)
        ):
            raise ValueError(f"{self._name} does not hold the {rows} rows that it tells of: {_SUGGESTED_FIX}")

    def read_group(self, number: int, columns: list[str]) -> pa.Table:
        """Some columns of a row group, after its bytes were compared with their checksum."""
        end, crc = self._groups[number]
        start = self._groups[number - 1][0] if number else len(MAGIC)
        if zlib.crc32(self._file.read_at(end - start, start)) != crc:
            raise ValueError(f"{self._name} is damaged in its rows from {number * ROWS_PER_GROUP}: {_SUGGESTED_FIX}")
        return self._parquet.read_row_group(number, columns=columns, use_threads=False)

    def check(self) -> None:
        """Read all rows' bytes and compare them with their checksums."""
        for number in range(len(self._groups)):
            self.read_group(number, [])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
