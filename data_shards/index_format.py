"""How an index is laid out, and its writer: see `data_shards.index` for the reader."""

import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_shards.schema import MEMBERS, MODALITIES, DatasetInfo
from data_shards.tar import ShardRows

INDEX_NAME = "index.parquet"
MAGIC = b"PAR1"
ROWS_PER_GROUP = 16384
TAIL = hashlib.sha256().digest_size + 8
"""Bytes at the end of an index: the footer's sha256, its length and the magic word."""

SCHEMA = pa.schema(
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

RECORD = np.dtype(
    [
        ("shard", np.int32),
        ("offset", np.int64, len(MEMBERS)),
        ("size", np.int64, len(MEMBERS)),
        ("crc32", np.uint32, len(MEMBERS)),
        ("label", np.float32),
        ("length", np.int32, len(MODALITIES)),
    ]
)
"""One sample as the reader wants it: the numeric columns of a row."""


def to_records(table: pa.Table) -> NDArray[np.void]:
    """The numeric columns of index rows as one array of dtype RECORD."""
    records = np.empty(len(table), RECORD)
    for name in ("shard", "label"):
        records[name] = table.column(name).to_numpy()
    for name, parts in (("offset", MEMBERS), ("size", MEMBERS), ("crc32", MEMBERS), ("length", MODALITIES)):
        for i, part in enumerate(parts):
            records[name][:, i] = table.column(f"{part}_{name}").to_numpy()
    return records


class IndexWriter:
    """Writes an index row group by row group, so that its size does not matter; `finish` adds what the set is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pq.ParquetWriter(
            self._sink, SCHEMA, compression="zstd", write_statistics=False, use_dictionary=["split"]
        )
        self._pending: list[pa.Table] = []
        self._ends: list[tuple[int, int]] = []

    def add(self, rows: ShardRows, *, shard: int) -> None:
        """Append one shard's rows; shards come in the order of the index."""
        self._pending.append(_table(rows, shard))
        if sum(map(len, self._pending)) >= ROWS_PER_GROUP:
            table = pa.concat_tables(self._pending).combine_chunks()
            whole = len(table) // ROWS_PER_GROUP * ROWS_PER_GROUP
            for start in range(0, whole, ROWS_PER_GROUP):
                self._write(table.slice(start, ROWS_PER_GROUP))
            self._pending = [table.slice(whole)]

    def finish(self, info: DatasetInfo) -> None:
        """Write the last rows and the metadata, seal the footer and flush the file to disk."""
        rest = pa.concat_tables(self._pending).combine_chunks()
        if len(rest):
            self._write(rest)
        self._writer.add_key_value_metadata({"dmd.info": info.to_json(), "dmd.row_groups": json.dumps(self._ends)})
        self._writer.close()
        self._sink.close()
        with open(self._path, "r+b") as file:
            _seal(file.fileno())
            os.fsync(file.fileno())

    def abort(self) -> None:
        """Give up: close the file, which is then no index."""
        if not self._sink.closed:
            self._writer.close()
            self._sink.close()

    def _write(self, table: pa.Table) -> None:
        start = self._ends[-1][0] if self._ends else len(MAGIC)
        self._writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        end = self._sink.tell()
        with open(self._path, "rb") as file:
            file.seek(start)
            self._ends.append((end, zlib.crc32(file.read(end - start))))


def _seal(handle: int) -> None:
    """Put the footer's sha256 between the footer and its length."""
    size = os.fstat(handle).st_size
    length = int.from_bytes(os.pread(handle, 4, size - 8), "little")
    digest = hashlib.sha256(os.pread(handle, length, size - 8 - length)).digest()
    os.pwrite(handle, digest + (length + len(digest)).to_bytes(4, "little") + MAGIC, size - 8)


def _table(rows: ShardRows, shard: int) -> pa.Table:
    count = len(rows.keys)
    columns: dict[str, object] = {"split": [rows.split] * count, "key": rows.keys, "id": rows.ids}
    columns["shard"] = np.full(count, shard, dtype=np.int32)
    for name, values, dtype in (
        ("offset", rows.offsets, np.int64),
        ("size", rows.sizes, np.int64),
        ("crc32", rows.crc32, np.uint32),
    ):
        array = np.array(values, dtype=dtype)
        columns.update({f"{member}_{name}": array[:, i] for i, member in enumerate(MEMBERS)})
    columns["label"] = np.array(rows.labels, dtype=np.float32)
    lengths = np.array(rows.lengths, dtype=np.int32)
    columns.update({f"{modality}_length": lengths[:, i] for i, modality in enumerate(MODALITIES)})
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(SCHEMA)
