"""A Parquet or Arrow table, one file or a directory of them: one row per sample, features as lists of lists.

Columns: `split` (or directories `split=train`), `id`, `label`, `audio` and `vision` (list<list<float>>, steps by
features), `text` (the same) or `text_bert` (3 lists of token ids), and optionally `raw_text` and `audio_length` etc.
Samples may have different numbers of steps; they are padded at the end. Row groups are read one at a time, and twice:
for counts and lengths, and to write.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from data_shards.file_kinds import check_file_kind, is_macos_metadata, kind_of
from data_shards.format.index_file import INDEX_NAME
from data_shards.format.schema import MODALITIES, SPLITS, Sample
from data_shards.sources.conversions import (
    check_nonfinite,
    to_count,
    to_features,
    to_id,
    to_number,
    to_raw_text,
    to_tokens,
)
from data_shards.sources.memory import check_memory
from data_shards.sources.mmsa import Nonfinite, TextChoice
from data_shards.sources.nested import Nested
from data_shards.sources.splits import named_split

TABLE_SUFFIXES: dict[str, Literal["parquet", "ipc"]] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".ipc": "ipc",
}
_HINTS = {
    "id": "; without ids, number the samples with --ids number",
    "split": "; write it, or put the files in directories called split=train, split=valid and split=test",
    "label": "; sentiments, or class numbers with --classes, are read from there",
}
TABLE_KINDS: dict[str, Literal["parquet", "ipc"]] = {"a Parquet table": "parquet", "an Arrow table": "ipc"}


@dataclass(frozen=True)
class _SplitRows:
    """The rows of one split in a row group."""

    row_group: int
    split: int
    """Its place in SPLITS."""
    table: pa.Table


class TableSource:
    """A table on disk; at most one of its row groups is in memory."""

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        text: TextChoice = "auto",
        nonfinite: Nonfinite = "refuse",
        need_ids: bool = True,
    ) -> None:
        """Open a table and read it once; without `need_ids` a table without a column `id` gives empty ones."""
        self.name = name or Path(path).stem
        self._path = str(path)
        self._zero = nonfinite == "zero"
        self._need_ids = need_ids
        self._dataset, other_files = _open(Path(path))
        self._columns = _columns(self._dataset.schema, self._path, text, need_ids=need_ids)
        used = {"split", "id", "label", "raw_text", *self._columns.values(), *(f"{m}_length" for m in MODALITIES)}
        self._row_groups = _row_groups(self._dataset)
        self._counts = np.zeros((len(SPLITS), len(self._row_groups)), dtype=np.int64)
        self._steps = dict.fromkeys(MODALITIES, 0)
        bad: dict[str, tuple[int, str]] = {}
        for number in range(len(self._row_groups)):
            self._survey(number, bad)
        self.nonfinite = {name: count for name, (count, _) in bad.items()}
        """Non-finite values per split and modality, as found (with `zero` they are stored as 0)."""
        self.ignored = _unused(self._dataset, used) | other_files
        """Columns and files that no sample comes from -> how many entries they have."""
        if not self._zero:
            check_nonfinite(bad, self._path)
        self._last_rows: _SplitRows | None = None

    def counts(self) -> dict[str, int]:
        """Samples per split, for the splits that occur."""
        totals = dict(zip(SPLITS, self._counts.sum(axis=1).tolist(), strict=True))
        return {split: count for split, count in totals.items() if count}

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split, in the order of the files and their rows."""
        number = SPLITS.index(split)
        ends = np.cumsum(self._counts[number])
        row_group = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            first = int(ends[row_group] - self._counts[number, row_group])
            end = min(stop, int(ends[row_group]))
            if end > start:
                yield from self._samples(self._rows(row_group, number).slice(start - first, end - start), split)
            start = end
            row_group += 1

    def _samples(self, table: pa.Table, split: str) -> Iterator[Sample]:
        nested = {m: Nested(table.column(column), column, self._path) for m, column in self._columns.items()}
        lengths = {m: _optional(table, f"{m}_length") for m in MODALITIES}
        columns = {name: _optional(table, name) for name in ("id", "label", "raw_text")}
        for i in range(len(table)):
            name = to_id(columns["id"][i], f"{self._path}: {split}", needed=self._need_ids) if columns["id"] else ""
            arrays: dict[str, Any] = {}
            try:
                for m in MODALITIES:
                    array = nested[m][i]
                    if self._columns[m] == "text_bert":
                        arrays[m] = to_tokens(_pad_tokens(array, self._steps[m]))
                    else:
                        arrays[m] = to_features(array, zero=self._zero, steps=self._steps[m])
                label = to_number(columns["label"][i], "label")
                own = [to_count(lengths[m][i], f"{m}_length") if lengths[m] else nested[m].steps(i) for m in MODALITIES]
            except ValueError as error:
                raise ValueError(f"{self._path}: {split} sample {name or i!r}: {error}") from error
            if not lengths["text"] and self._columns["text"] == "text_bert":
                own[0] = int(arrays["text"][1].sum())
            yield Sample(
                id=name,
                split=split,
                label=label,
                raw_text=to_raw_text(columns["raw_text"][i]) if columns["raw_text"] else "",
                lengths=(own[0], own[1], own[2]),
                **arrays,
            )

    def _survey(self, row_group: int, bad: dict[str, tuple[int, str]]) -> None:
        """Count a row group's samples, steps and non-finite values; the latter go into `bad`."""
        check_memory(self._row_groups[row_group], self._path)
        table = self._table(row_group)
        splits = np.asarray(self._splits(table), dtype=object)
        for number, split in enumerate(SPLITS):
            self._counts[number, row_group] = int((splits == split).sum())
        first_row = int(self._counts[:, :row_group].sum())
        ids = [
            to_id(value, f"{self._path}: row {first_row + row}", needed=self._need_ids)
            for row, value in enumerate(_optional(table, "id"))
        ]
        for modality, column in self._columns.items():
            nested = Nested(table.column(column), column, self._path)
            tokens = column == "text_bert"
            self._steps[modality] = max(self._steps[modality], nested.width if tokens else nested.longest)
            for row, count in nested.nonfinite():
                name = f"{splits[row]}/{modality}"
                before, first = bad.get(name, (0, ids[row] if ids else f"row {first_row + row}"))
                bad[name] = before + count, first

    def _table(self, row_group: int) -> pa.Table:
        """A row group, with the columns and types of the first file."""
        try:
            return self._row_groups[row_group].to_table(schema=self._dataset.schema, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{self._row_groups[row_group].path} cannot be read as the table {self._path}: "
                f"{str(error).splitlines()[0]}; give all files the same columns and types, or write the file again"
            ) from error

    def _rows(self, row_group: int, split: int) -> pa.Table:
        """The rows of one split in a row group; those of the last call are cached, as shards share row groups."""
        last = self._last_rows
        if last is None or (last.row_group, last.split) != (row_group, split):
            table = self._table(row_group)
            chosen = pa.array([name == SPLITS[split] for name in self._splits(table)])
            last = self._last_rows = _SplitRows(row_group, split, table.filter(chosen))
        return last.table

    def _splits(self, table: pa.Table) -> list[str]:
        """The split of each row."""
        given = table.column("split").to_pylist()
        names = {name: named_split(name, f"{self._path}: split") for name in set(given)}
        return [names[name] for name in given]


def _open(path: Path) -> tuple[ds.Dataset, dict[str, int]]:
    """The table, and the files of a directory that do not belong to it -> 1."""
    if (path / INDEX_NAME).is_file():
        raise ValueError(f"{path} holds shards already; give the features that they were made from, or train with it")
    files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    files = [file for file in files if not is_macos_metadata(str(file.relative_to(path)))]
    tables = {file: kind for file in files if (kind := table_format(file))}
    if len(set(tables.values())) != 1:
        known = ((file, kind_of(file)) for file in files)
        held = next((f"; {file} is {kind.name}: {kind.advice}" for file, kind in known if kind is not None), "")
        raise ValueError(f"{path} is no table: give a .parquet or .arrow file, or a directory of one of them{held}")
    for file in tables:
        check_file_kind(file, "a table", allowed=tuple(TABLE_KINDS))
    other_files = {f"file {file.relative_to(path)}": 1 for file in files if file not in tables}
    try:
        source = [str(file) for file in tables] if path.is_dir() else str(path)
        opened = ds.dataset(source, format=next(iter(tables.values())), partitioning="hive")
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path} is no table that can be read: {str(error).splitlines()[0]}; write or download it again (of Arrow "
            "the file format, which `pyarrow.ipc.new_file` writes)"
        ) from error
    for fragment in opened.get_fragments():
        named = ds.get_partition_keys(fragment.partition_expression)
        for name in set(named) & set(fragment.physical_schema.names):
            where = f"its directory says {name}={named[name]}"
            raise ValueError(f"{fragment.path} has a column {name}, and {where}; leave one of them")
    return opened, other_files


def _unused(dataset: ds.Dataset, used: set[str]) -> dict[str, int]:
    """The columns of all files that are not read, and those that the first file lacks -> their rows."""
    found: dict[str, int] = {}
    known = set(dataset.schema.names)
    for fragment in dataset.get_fragments():
        for name in fragment.physical_schema.names:
            if name not in used or name not in known:
                found[f"column {name}"] = found.get(f"column {name}", 0) + fragment.count_rows()
    return found


def table_format(file: Path) -> Literal["parquet", "ipc"] | None:
    """The format of a table: by its name, or else by its first bytes; None for any other file."""
    if file.suffix in TABLE_SUFFIXES or not file.is_file():
        return TABLE_SUFFIXES.get(file.suffix)
    kind = kind_of(file)
    return None if kind is None else TABLE_KINDS.get(kind.name)


def _row_groups(dataset: ds.Dataset) -> list[Any]:
    fragments = sorted(dataset.get_fragments(), key=lambda fragment: fragment.path)
    if isinstance(dataset.format, ds.ParquetFileFormat):
        return [group for fragment in fragments for group in fragment.split_by_row_group()]
    return fragments


def _columns(schema: pa.Schema, path: str, text: TextChoice, *, need_ids: bool) -> dict[str, str]:
    """Which column holds a modality."""
    if text == "auto":
        text = "features" if "text" in schema.names else "tokens"
    columns = {"text": "text" if text == "features" else "text_bert", "audio": "audio", "vision": "vision"}
    wanted = ("split", *(("id",) if need_ids else ()), "label", *columns.values())
    missing = [name for name in wanted if name not in schema.names]
    if missing:
        hint = _HINTS.get(missing[0], "")
        raise ValueError(f"{path} lacks the column {missing[0]}; it has {', '.join(schema.names)}{hint}")
    return columns


def _optional(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist() if name in table.schema.names else []


def _pad_tokens(array: NDArray[Any], steps: int) -> NDArray[Any]:
    if array.shape[0] != 3:
        raise ValueError(f"text_bert has shape {array.shape}; it must be [3, T]")
    return np.pad(array, ((0, 0), (0, steps - array.shape[1])))
