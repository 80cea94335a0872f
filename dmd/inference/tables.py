"""Samples of a Parquet or Arrow table that a trained model is to read: labels, ids and splits may be absent.

The columns are those of `data_shards.sources.table`. A null, or a list without steps, is a missing modality.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from data_shards.format.extraction_files import (
    OWN_FILES,
    SETTINGS_FILE,
    check_finished,
    extraction_of,
    own_file,
    read_extraction,
)
from data_shards.sources.nested import Nested
from data_shards.sources.paths import count_no_files, named_files
from data_shards.sources.splits import named_split
from data_shards.sources.table import table_format

FEATURES = ("text", "text_bert", "audio", "vision")
"""Columns of lists of lists of numbers."""
_TITLES = {"parquet": "Parquet table", "ipc": "Arrow table"}


def is_table(path: Path) -> bool:
    """Whether a path is a table, or a directory with files of one."""
    return any(table_format(file) is not None for file, _ in named_files([path])) if path.exists() else False


class Table:
    """A table on disk; a row group of it is in memory at a time."""

    def __init__(self, path: Path) -> None:
        """Look at its columns.

        Raises:
            ValueError: files of different formats, or no table.
        """
        self._path = path
        if path.is_dir():
            check_finished(path)
        files = dict(named_files([path]))
        formats = {file: found for file in files if (found := table_format(file)) is not None}
        if len(set(formats.values())) != 1:
            raise ValueError(f"{path} holds Parquet and Arrow files; give a directory of one of them")
        is_set = own_file(path, SETTINGS_FILE).is_file()
        extracted = [file for file, name in files.items() if name in OWN_FILES and is_set]
        others = files.keys() - formats.keys() - set(extracted)
        self.other_files = {f"file {files[file]}": 1 for file in others} | count_no_files([path])
        """What the directory holds beside the table -> 1."""
        self._format = next(iter(formats.values()))
        with self._readable():
            self._data = ds.dataset(sorted(map(str, formats)), format=self._format, partitioning="hive")

    def extraction(self) -> dict[str, Any]:
        """How its features were made of clips; empty where it does not say.

        Raises:
            ValueError: its files were made otherwise, or their metadata is damaged.
        """
        with self._readable():
            written = {
                extraction_of(fragment.physical_schema): fragment.path for fragment in self._data.get_fragments()
            }
        if len(written) > 1:
            one, other = list(written.values())[:2]
            raise ValueError(f"{self._path}: the features of {one} and {other} were made otherwise; predict each alone")
        return read_extraction(next(iter(written)), self._path)

    def splits(self) -> list[str]:
        """The splits that occur; "" alone where the table has none."""
        if "split" not in self._data.schema.names:
            return [""]
        with self._readable():
            names = self._data.to_table(columns=["split"]).column("split").unique().to_pylist()
        return list(dict.fromkeys(self._split(name) for name in names))

    def read(self, split: str, size: int) -> Iterator[dict[str, Any]]:
        """The rows of a split, `size` at a time and the rest at the end, as {column: one value per row}; features are
        arrays [T, D], None where they are missing."""
        waiting: list[pa.Table] = []
        for rows in self._row_groups():
            waiting.append(rows if not split else rows.filter(self._is_in(rows, split)))
            if sum(map(len, waiting)) >= size:
                whole = pa.concat_tables(waiting)
                last = len(whole) - len(whole) % size
                for begin in range(0, last, size):
                    yield self._columns(whole.slice(begin, size))
                waiting = [whole.slice(last)]
        rest = pa.concat_tables(waiting) if waiting else []
        if len(rest):
            yield self._columns(rest)

    def _row_groups(self) -> Iterator[pa.Table]:
        with self._readable():
            for fragment in self._data.get_fragments():
                groups = fragment.split_by_row_group() if hasattr(fragment, "split_by_row_group") else [fragment]
                for group in groups:
                    yield group.to_table(schema=self._data.schema, use_threads=False)

    def _is_in(self, rows: pa.Table, split: str) -> pa.Array:
        return pa.array([self._split(name) == split for name in rows.column("split").to_pylist()], pa.bool_())

    def _split(self, name: object) -> str:
        return named_split(name, f"{self._path}: split")

    def _columns(self, rows: pa.Table) -> dict[str, Any]:
        return {
            name: self._arrays(rows.column(name), name) if name in FEATURES else rows.column(name).to_pylist()
            for name in rows.column_names
            if name != "split"
        }

    def _arrays(self, column: pa.ChunkedArray, name: str) -> list[Any]:
        """One array per row, None where it is null or has no step."""
        if pa.types.is_null(column.type):
            return [None] * len(column)
        try:
            there = pc.fill_null(pc.greater(pc.list_value_length(column), 0), False)
        except pa.ArrowException as error:
            raise ValueError(f"{self._path}: {name} is {column.type}; it must be a list of lists of numbers") from error
        if not pc.any(there).as_py():
            return [None] * len(column)
        nested = Nested(column.filter(there), name, str(self._path))
        numbers = iter(range(len(column)))
        return [nested[next(numbers)] if found else None for found in there.to_pylist()]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowException as error:
            raise ValueError(
                f"{self._path} is no whole {_TITLES[self._format]}: {str(error).splitlines()[0]}; write it again"
            ) from error
