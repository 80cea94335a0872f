"""A Parquet or Arrow table, one file or a directory of them: one row per sample, features as lists of lists.

Columns: `split` (or directories `split=train`), `id`, `label`, `audio` and `vision` (list<list<float>>, steps by
features), `text` (the same) or `text_bert` (3 lists of token ids), and optionally `raw_text` and `audio_length` etc.
Where text is made of `raw_text` later, neither text column is read.
Class numbers or names may be in `class` instead of `label`, or beside it; each emotion has a column of its own.
Samples may have different numbers of steps; they are padded at the end. Row groups are read one at a time, and twice:
for counts and lengths, file by file, and to write.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from data_shards.durable import unreadable
from data_shards.executor import Executor, InThisProcess
from data_shards.file_kinds import check_file_kind, kind_of
from data_shards.format.extraction_files import (
    FAILURES_FILE,
    OWN_FILES,
    SETTINGS_FILE,
    check_finished,
    differences,
    extraction_of,
    own_file,
    read_extraction,
)
from data_shards.format.index_file import INDEX_NAME
from data_shards.format.schema import MODALITIES, SPLITS, Sample
from data_shards.labels import Labels
from data_shards.sources.conversions import (
    NO_TEXT,
    check_nonfinite,
    to_count,
    to_features,
    to_id,
    to_raw_text,
    to_tokens,
)
from data_shards.sources.memory import SURVEY_MEMORY, check_memory
from data_shards.sources.mmsa import Nonfinite, TextChoice
from data_shards.sources.nested import Nested
from data_shards.sources.paths import Paths, default_name, named_files, to_paths, where_of
from data_shards.sources.splits import UNSPLIT, named_split
from data_shards.sources.table_labels import LabelColumns

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
    "label": "; sentiments are read from there, and with --classes the classes, if not from a column class",
    "text_bert": "; make tokens of a column raw_text with --tokenizer NAME_OR_PATH",
}
_COPIES = 8
"""Of a row group while it is read: in Arrow's buffers, as unpacked, the rows of a split; measured up to 7.4."""
_READER_MEMORY = 64 << 20
"""Bytes of Arrow's own, measured 34 MiB."""
TABLE_KINDS: dict[str, Literal["parquet", "ipc"]] = {"a Parquet table": "parquet", "an Arrow table": "ipc"}


@dataclass(frozen=True, kw_only=True)
class _Table:
    """How the files of a table are read. Picklable."""

    where: str
    """What errors call it."""
    files: tuple[str, ...]
    format: Literal["parquet", "ipc"]
    schema: pa.Schema
    """Columns and types, as in the first file, and what the directories say."""
    columns: dict[str, str]
    """The column that holds a modality."""
    labels: LabelColumns
    need_ids: bool

    def row_groups(self, file: int) -> list[Any]:
        """The parts of a file that are read at once: of Parquet its row groups."""
        path = self.files[file]
        with self._readable(path):
            fragments = list(
                ds.dataset([path], schema=self.schema, format=self.format, partitioning="hive").get_fragments()
            )
            return (
                [group for fragment in fragments for group in fragment.split_by_row_group()]
                if self.format == "parquet"
                else fragments
            )

    def read(self, row_group: Any) -> pa.Table:
        """A row group, with the columns and types of the first file."""
        with self._readable(row_group.path):
            return row_group.to_table(schema=self.schema, use_threads=False)

    def splits(self, table: pa.Table) -> list[str]:
        """The split of each row."""
        if "split" not in self.schema.names:
            return [UNSPLIT] * len(table)
        given = table.column("split").to_pylist()
        names = {name: named_split(name, f"{self.where}: split") for name in set(given)}
        return [names[name] for name in given]

    @contextmanager
    def _readable(self, path: str) -> Iterator[None]:
        """Name the file in the errors of the block; of a storage that fails they are `Unreadable`."""
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            if isinstance(error, OSError) and error.errno is not None:
                raise unreadable(path, error) from error
            raise ValueError(
                f"{path} cannot be read as the table {self.where}: {str(error).splitlines()[0]}; give all files the "
                "same columns and types, or write the file again"
            ) from error


@dataclass(frozen=True)
class _Bad:
    """Non-finite values of a modality."""

    count: int
    row: int
    """The first row that has one."""
    id: str | None
    """That row's id, where the table has ids."""


@dataclass(frozen=True, kw_only=True)
class _FileFacts:
    """What is known of a file before samples are read from it."""

    counts: NDArray[np.int64]
    """Samples [splits, row groups], splits as in SPLITS."""
    steps: dict[str, int]
    """The largest number of steps of each modality."""
    widths: dict[str, int]
    """The number of features of each modality."""
    bad: dict[str, _Bad]
    """By split and modality."""
    unused: dict[str, int]
    """Columns that are not read -> their rows."""
    ids: dict[str, list[str]]
    """Split -> ids; none where no label file is joined with them."""
    memory: int
    """Bytes of the largest row group, unpacked."""
    extraction: str
    """How its features were made of clips, as JSON; empty where the file does not say."""


@dataclass(frozen=True)
class _SurveyFile:
    """Reads the files of a table, one row group at a time."""

    table: _Table

    def __call__(self, file: int) -> _FileFacts:
        """Look at a file; `ValueError` where it does not belong to the table."""
        table = self.table
        check_file_kind(table.files[file], "a table", allowed=tuple(TABLE_KINDS))
        row_groups = table.row_groups(file)
        counts = np.zeros((len(SPLITS), len(row_groups)), dtype=np.int64)
        steps, widths = dict.fromkeys(MODALITIES, 0), dict.fromkeys(MODALITIES, 0)
        bad: dict[str, _Bad] = {}
        ids_of: dict[str, list[str]] = {}
        memory = 0
        for number, row_group in enumerate(row_groups):
            _check_partition(row_group)
            check_memory(row_group, table.files[file])
            rows = table.read(row_group)
            memory = max(memory, rows.nbytes)
            splits = np.asarray(table.splits(rows), dtype=object)
            first = int(counts.sum())
            for split, name in enumerate(SPLITS):
                counts[split, number] = int((splits == name).sum())
            ids = [
                to_id(value, f"{table.files[file]}: row {first + row}", needed=table.need_ids)
                for row, value in enumerate(_optional(rows, "id"))
            ]
            if not table.labels.names:
                for name, split in zip(ids, splits.tolist(), strict=True):
                    ids_of.setdefault(split, []).append(name)
            for modality, column in table.columns.items():
                nested = Nested(rows.column(column), column, table.files[file])
                steps[modality] = max(steps[modality], nested.width if column == "text_bert" else nested.longest)
                widths[modality] = nested.width
                for row, count in nested.nonfinite():
                    name = f"{splits[row]}/{modality}"
                    known = bad.get(name, _Bad(0, first + row, ids[row] if ids else None))
                    bad[name] = replace(known, count=known.count + count)
        return _FileFacts(
            counts=counts,
            steps=steps,
            widths=widths,
            bad=bad,
            unused=_unused(row_groups, table),
            ids=ids_of,
            memory=memory,
            extraction=extraction_of(row_groups[0].physical_schema) if row_groups else "",
        )


@dataclass(frozen=True)
class _SplitRows:
    """The rows of one split in a row group."""

    row_group: int
    split: int
    """Its place in SPLITS."""
    table: pa.Table


@dataclass(frozen=True)
class _RowGroups:
    """The row groups of a file."""

    file: int
    groups: list[Any]


class TableSource:
    """A table on disk; at most one of its row groups is in memory. Pickled without any."""

    def __init__(
        self,
        path: Paths,
        *,
        name: str | None = None,
        text: TextChoice = "auto",
        nonfinite: Nonfinite = "refuse",
        class_labels: bool = False,
        labels: Labels | None = None,
        need_ids: bool = True,
        labelled: bool = True,
        executor: Executor | None = None,
    ) -> None:
        """Open a table and read it once; without `need_ids` a table without a column `id` gives empty ones.

        Args:
            path: a file, a directory of them, or several of both.
            class_labels: read the column `class` beside the sentiments.
            labels: what is read as labels; None: sentiments.
            labelled: whether labels are read; else they are NaN, for `labelled.LabelledSource`, which needs ids, and
                the table may lack the column `split`.
            executor: where its files are read that once; None: in this process.
        """
        paths = to_paths(path)
        self.name = name or default_name(paths)
        self._zero = nonfinite == "zero"
        self._table, other_files = _open(
            paths,
            text,
            need_ids=need_ids or not labelled,
            labels=(labels or Labels()) if labelled else None,
            class_labels=class_labels,
        )
        self.has_splits = "split" in self._table.schema.names
        """Whether the table says which split its samples are of."""
        self.num_files = len(self._table.files)
        self._steps = dict.fromkeys(MODALITIES, 0)
        self.ignored = other_files
        """Columns and files that no sample comes from -> how many entries they have."""
        bad: dict[str, tuple[int, str]] = {}
        counts, places = [], []
        self._ids: dict[str, list[str]] = {split: [] for split in SPLITS}
        self._memory = rows = 0
        widths: dict[str, int] = {}
        self.extraction: dict[str, Any] = {}
        """How the features of all files were made of clips (`dmd extract`); empty where the files do not say."""
        with (executor or InThisProcess()).map_in_order(
            _SurveyFile(self._table), len(self._table.files), memory=SURVEY_MEMORY
        ) as surveys:
            for file, facts in enumerate(surveys):
                self._check_widths(widths, facts, file)
                self._check_extraction(facts, file)
                for modality in MODALITIES:
                    self._steps[modality] = max(self._steps[modality], facts.steps[modality])
                for column, number in facts.unused.items():
                    self.ignored[column] = self.ignored.get(column, 0) + number
                for place, found in facts.bad.items():
                    before, first = bad.get(place, (0, f"row {rows + found.row}" if found.id is None else found.id))
                    bad[place] = before + found.count, first
                counts.append(facts.counts)
                places += [(file, number) for number in range(facts.counts.shape[1])]
                rows += int(facts.counts.sum())
                for split, ids in facts.ids.items():
                    self._ids[split] += ids
                self._memory = max(self._memory, facts.memory)
        self._counts = np.concatenate(counts, axis=1)
        self._places = np.array(places, dtype=np.int64).reshape(-1, 2)
        """File and number in it of each row group [row groups, 2]."""
        self.nonfinite = {name: count for name, (count, _) in bad.items()}
        """Non-finite values per split and modality, as found (with `zero` they are stored as 0)."""
        if not self._zero:
            check_nonfinite(bad, self._table.where)
        self._last_rows: _SplitRows | None = None
        self._last_file: _RowGroups | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_rows": None, "_last_file": None}

    def counts(self) -> dict[str, int]:
        """Samples per split, for the splits that occur."""
        totals = dict(zip(SPLITS, self._counts.sum(axis=1).tolist(), strict=True))
        return {split: count for split, count in totals.items() if count}

    def ids(self, split: str) -> list[str]:
        """The id of each sample of a split, of a table that is read without labels."""
        return self._ids[split]

    def memory(self) -> int:
        """Bytes that reading takes at most: a row group as it is unpacked, filtered and laid out."""
        return _READER_MEMORY + _COPIES * self._memory

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

    def file_of(self, split: str, number: int) -> str:
        """The file of a sample."""
        ends = np.cumsum(self._counts[SPLITS.index(split)])
        return self._table.files[self._places[int(np.searchsorted(ends, number, side="right")), 0]]

    def _check_widths(self, widths: dict[str, int], facts: _FileFacts, file: int) -> None:
        """Raise ValueError where a file's features differ from those of the files before it."""
        for modality, width in facts.widths.items():
            known = widths.setdefault(modality, width) or width
            widths[modality] = known
            if width and width != known and self._table.columns[modality] != "text_bert":
                raise ValueError(
                    f"{self._table.files[file]}: {modality} has {width} features per step, and {known} in the files "
                    "before it; give all files the same features"
                )

    def _check_extraction(self, facts: _FileFacts, file: int) -> None:
        """Raise ValueError where a file's features were made otherwise than those of the files before it."""
        path, first = self._table.files[file], self._table.files[0]
        settings = read_extraction(facts.extraction, path)
        if file == 0:
            self.extraction = settings
        elif changes := differences(self.extraction, settings):
            raise ValueError(
                f"{path}: its features were made otherwise than those of {first} ({'; '.join(changes)}); extract all "
                "clips with the same settings"
            )

    def _samples(self, table: pa.Table, split: str) -> Iterator[Sample]:
        where, chosen = self._table.where, self._table.columns
        nested = {m: Nested(table.column(column), column, where) for m, column in chosen.items()}
        lengths = {m: _optional(table, f"{m}_length") for m in MODALITIES}
        columns = {name: _optional(table, name) for name in ("id", "raw_text")}
        labels = {name: _optional(table, name) for name in self._table.labels.names}
        for i in range(len(table)):
            name = to_id(columns["id"][i], f"{where}: {split}", needed=self._table.need_ids) if columns["id"] else ""
            arrays: dict[str, Any] = {"text": NO_TEXT}
            try:
                for m in chosen:
                    array = nested[m][i]
                    if chosen[m] == "text_bert":
                        arrays[m] = to_tokens(_pad_tokens(array, self._steps[m]))
                    else:
                        arrays[m] = to_features(array, zero=self._zero, steps=self._steps[m])
                label_fields = self._table.labels.read({name: labels[name][i] for name in labels})
                own = {"text": 0} | {
                    m: to_count(lengths[m][i], f"{m}_length") if lengths[m] else nested[m].steps(i) for m in chosen
                }
            except ValueError as error:
                raise ValueError(f"{where}: {split} sample {name or i!r}: {error}") from error
            if not lengths["text"] and chosen.get("text") == "text_bert":
                own["text"] = int(arrays["text"][1].sum())
            yield Sample(
                id=name,
                split=split,
                **label_fields,
                raw_text=to_raw_text(columns["raw_text"][i]) if columns["raw_text"] else "",
                lengths=(own["text"], own["audio"], own["vision"]),
                **arrays,
            )

    def _rows(self, row_group: int, split: int) -> pa.Table:
        """The rows of one split in a row group; those of the last call are cached, as shards share row groups."""
        last = self._last_rows
        if last is None or (last.row_group, last.split) != (row_group, split):
            self._last_rows = last = None  # before another one takes its memory
            file, number = self._places[row_group].tolist()
            if self._last_file is None or self._last_file.file != file:
                self._last_file = _RowGroups(file, self._table.row_groups(file))
            table = self._table.read(self._last_file.groups[number])
            chosen = pa.array([name == SPLITS[split] for name in self._table.splits(table)])
            last = self._last_rows = _SplitRows(row_group, split, table.filter(chosen))
        return last.table


def _open(
    paths: Sequence[Path], text: TextChoice, *, need_ids: bool, labels: Labels | None, class_labels: bool
) -> tuple[_Table, dict[str, int]]:
    """The table, and the files of a directory that do not belong to it -> 1; without `labels` one of features alone."""
    where = where_of(paths)
    for path in paths:
        if (path / INDEX_NAME).is_file():
            raise ValueError(
                f"{path} holds shards already; give the features that they were made from, or train with it"
            )
        check_finished(path)
    names = dict(named_files(paths))
    tables = {file: found for file in names if (found := table_format(file)) is not None}
    if len(set(tables.values())) != 1:
        known = ((file, kind_of(file)) for file in names)
        held = next((f"; {file} is {kind.name}: {kind.advice}" for file, kind in known if kind is not None), "")
        failures = (own_file(path, FAILURES_FILE) for path in paths)
        if listed := next((file for file in failures if file.is_file()), None):
            held = f"; {listed.name} there says why `dmd extract` has no features"
        raise ValueError(f"{where} is no table: give a .parquet or .arrow file, or a directory of one of them{held}")
    files = tuple(sorted(map(str, tables)))
    check_file_kind(files[0], "a table", allowed=tuple(TABLE_KINDS))
    file_format = next(iter(tables.values()))
    try:
        schema = ds.dataset(list(files), format=file_format, partitioning="hive").schema
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{where} is no table that can be read: {str(error).splitlines()[0]}; write or download it again (of Arrow "
            "the file format, which `pyarrow.ipc.new_file` writes)"
        ) from error
    columns = _columns(schema, text)
    if labels is None:
        label_columns = LabelColumns(label="", class_label="", declared=Labels())
    else:
        label_columns = LabelColumns.find(schema.names, labels, class_labels=class_labels)
    needed = (*(() if labels is None else ("split",)), *(("id",) if need_ids else ()))
    _check_columns(schema, where, (*needed, *label_columns.names, *columns.values()))
    table = _Table(
        where=where,
        files=files,
        format=file_format,
        schema=schema,
        columns=columns,
        labels=label_columns,
        need_ids=need_ids,
    )
    folders = {file.parent for file in tables if own_file(file.parent, SETTINGS_FILE).is_file()}
    extracted = {folder / name for folder in folders for name in OWN_FILES}
    others = {file: name for file, name in names.items() if file not in tables and file not in extracted}
    return table, {f"file {name}": 1 for name in others.values()}


def _check_partition(fragment: Any) -> None:
    """Raise ValueError for a file with a column that its directory names too."""
    named = ds.get_partition_keys(fragment.partition_expression)
    for name in set(named) & set(fragment.physical_schema.names):
        where = f"its directory says {name}={named[name]}"
        raise ValueError(f"{fragment.path} has a column {name}, and {where}; leave one of them")


def _unused(row_groups: list[Any], table: _Table) -> dict[str, int]:
    """The columns of a file that are not read, and those that the first file lacks -> its rows."""
    used = {"split", "id", "raw_text", *table.labels.names, *table.columns.values()}
    used |= {f"{modality}_length" for modality in table.columns}
    used &= set(table.schema.names)
    found: dict[str, int] = {}
    for row_group in row_groups:
        for name in set(row_group.physical_schema.names) - used:
            found[f"column {name}"] = found.get(f"column {name}", 0) + row_group.count_rows()
    return found


def table_format(file: Path) -> Literal["parquet", "ipc"] | None:
    """The format of a table: by its name, or else by its first bytes; None for any other file."""
    if file.suffix in TABLE_SUFFIXES or not file.is_file():
        return TABLE_SUFFIXES.get(file.suffix)
    kind = kind_of(file)
    return None if kind is None else TABLE_KINDS.get(kind.name)


def _columns(schema: pa.Schema, text: TextChoice) -> dict[str, str]:
    """Which column holds a modality; no text where it is made of `raw_text`."""
    if text == "auto":
        text = "features" if "text" in schema.names else "tokens"
    columns = {"text": "text" if text == "features" else "text_bert", "audio": "audio", "vision": "vision"}
    if text == "transcripts":
        del columns["text"]
    return columns


def _check_columns(schema: pa.Schema, path: str, wanted: Sequence[str]) -> None:
    """Raise ValueError where a column of `wanted` is not there."""
    missing = [name for name in wanted if name not in schema.names]
    if missing:
        hint = _HINTS.get(missing[0], "")
        raise ValueError(f"{path} lacks the column {missing[0]}; it has {', '.join(schema.names)}{hint}")


def _optional(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist() if name in table.schema.names else []


def _pad_tokens(array: NDArray[Any], steps: int) -> NDArray[Any]:
    if array.shape[0] != 3:
        raise ValueError(f"text_bert has shape {array.shape}; it must be [3, T]")
    return np.pad(array, ((0, 0), (0, steps - array.shape[1])))
