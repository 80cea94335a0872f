"""Writes an index: see `data_shards.format.index_file` for the file and `data_shards.reading.index` for look-ups."""

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_shards.format.index_file import MAGIC, ROWS_PER_GROUP, index_schema
from data_shards.format.schema import MEMBERS, MODALITIES, DatasetInfo
from data_shards.format.shard_rows import ShardRows


class IndexWriter:
    """Writes an index row group by row group, so its size has no limit; `finish` adds the facts of the set."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink = pa.OSFile(str(path), "wb")
        self._opened: pq.ParquetWriter | None = None
        self._pending: list[pa.Table] = []
        self._ends: list[tuple[int, int]] = []
        """Where each row group ends, and its crc32."""

    def add(self, rows: ShardRows, *, shard: int) -> None:
        """Append one shard's rows; shards come in the order of the index."""
        self.append(_table(rows, shard))

    def append(self, table: pa.Table) -> None:
        """Append rows that have the index's schema."""
        self._pending.append(table)
        if sum(map(len, self._pending)) >= ROWS_PER_GROUP:
            table = pa.concat_tables(self._pending).combine_chunks()
            complete = len(table) // ROWS_PER_GROUP * ROWS_PER_GROUP
            for start in range(0, complete, ROWS_PER_GROUP):
                self._write(table.slice(start, ROWS_PER_GROUP))
            self._pending = [table.slice(complete)]

    def finish(self, info: DatasetInfo) -> None:
        """Write the last rows and the metadata, seal the footer and flush the file to disk."""
        rest = pa.concat_tables(self._pending).combine_chunks()
        if len(rest):
            self._write(rest)
        writer = self._writer(rest.schema)
        writer.add_key_value_metadata({"dmd.info": info.to_json(), "dmd.row_groups": json.dumps(self._ends)})
        writer.close()
        self._sink.close()
        with open(self._path, "r+b") as file:
            seal(file.fileno())
            os.fsync(file.fileno())

    def abort(self) -> None:
        """Close the file without its metadata: it is no index then."""
        if not self._sink.closed:
            if self._opened is not None:
                self._opened.close()
            self._sink.close()

    def _writer(self, schema: pa.Schema) -> pq.ParquetWriter:
        """The writer of the table, opened for the columns that the first rows have."""
        if self._opened is None:
            self._opened = pq.ParquetWriter(
                self._sink, schema, compression="zstd", write_statistics=False, use_dictionary=["split"]
            )
        return self._opened

    def _write(self, table: pa.Table) -> None:
        start = self._ends[-1][0] if self._ends else len(MAGIC)
        self._writer(table.schema).write_table(table, row_group_size=ROWS_PER_GROUP)
        end = self._sink.tell()
        with open(self._path, "rb") as file:
            file.seek(start)
            self._ends.append((end, zlib.crc32(file.read(end - start))))


def seal(handle: int) -> None:
    """Put the footer's sha256 between the footer and its length."""
    size = os.fstat(handle).st_size
    length = int.from_bytes(os.pread(handle, 4, size - 8), "little")
    digest = hashlib.sha256(os.pread(handle, length, size - 8 - length)).digest()
    os.pwrite(handle, digest + (length + len(digest)).to_bytes(4, "little") + MAGIC, size - 8)


def _table(rows: ShardRows, shard: int) -> pa.Table:
    count = len(rows.keys)
    columns: dict[str, Any] = {"split": [rows.split] * count, "key": rows.keys, "id": rows.ids}
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
    if rows.classes:
        columns["class"] = np.array(rows.classes, dtype=np.int32)
    if rows.emotions:
        flags = pa.array(np.concatenate(rows.emotions))
        columns["emotions"] = pa.FixedSizeListArray.from_arrays(flags, rows.num_emotions)
    schema = index_schema(classes=bool(rows.classes), emotions=rows.num_emotions)
    return pa.table({name: pa.array(values) for name, values in columns.items()}).cast(schema)
