"""A Parquet or Arrow table, one file or a directory of them: one row per sample, features as lists of lists.

Columns: `split` (or directories `split=train`), `id`, `label`, `audio` and `vision` (list<list<float>>, steps by
features), `text` (the same) or `text_bert` (3 lists of token ids), and optionally `raw_text` and `audio_length` etc.
Samples may have different numbers of steps; they are padded at the end. Row groups are read one at a time, twice:
once for counts and lengths, once to write.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from data_shards.schema import MODALITIES, SPLITS, Sample
from data_shards.sources.base import check_nonfinite, to_features, to_text, to_tokens
from data_shards.sources.mmsa import Nonfinite, TextChoice
from data_shards.sources.nested import Nested

TABLE_SUFFIXES: dict[str, Literal["parquet", "ipc"]] = {
    ".parquet": "parquet", ".pq": "parquet", ".arrow": "ipc", ".feather": "ipc", ".ipc": "ipc",
}  # fmt: skip


class TableSource:
    """A table on disk; at most one of its row groups is in memory."""

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        text: TextChoice = "auto",
        nonfinite: Nonfinite = "refuse",
    ) -> None:
        self.name = name or Path(path).stem
        self._path, self._zero = str(path), nonfinite == "zero"
        self._dataset = _open(Path(path))
        self._columns = _columns(self._dataset.schema, self._path, text)
        self._pieces = _pieces(self._dataset)
        self._counts = np.zeros((len(SPLITS), len(self._pieces)), dtype=np.int64)
        self._steps = dict.fromkeys(MODALITIES, 0)
        bad: dict[str, tuple[int, str]] = {}
        for number in range(len(self._pieces)):
            self._survey(number, bad)
        self.nonfinite = {name: count for name, (count, _) in bad.items()}
        """Non-finite values per split and modality, as found (with `zero` they are stored as 0)."""
        if not self._zero:
            check_nonfinite(bad)
        self._kept: tuple[int, int, pa.Table] | None = None

    def counts(self) -> dict[str, int]:
        """Samples per split, for the splits that occur."""
        totals = dict(zip(SPLITS, self._counts.sum(axis=1).tolist(), strict=True))
        return {split: count for split, count in totals.items() if count}

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split, in the order of the files and their rows."""
        number = SPLITS.index(split)
        ends = np.cumsum(self._counts[number])
        piece = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            first = int(ends[piece] - self._counts[number, piece])
            end = min(stop, int(ends[piece]))
            if end > start:
                yield from self._samples(self._rows(piece, number).slice(start - first, end - start), split)
            start, piece = end, piece + 1

    def _samples(self, table: pa.Table, split: str) -> Iterator[Sample]:
        nested = {m: Nested(table.column(column), column, self._path) for m, column in self._columns.items()}
        given = {m: _optional(table, f"{m}_length") for m in MODALITIES}
        plain = {name: _optional(table, name) for name in ("id", "label", "raw_text")}
        for i in range(len(table)):
            name = to_text(plain["id"][i])
            arrays: dict[str, Any] = {}
            try:
                for m in MODALITIES:
                    array = nested[m][i]
                    if self._columns[m] == "text_bert":
                        arrays[m] = to_tokens(_pad_tokens(array, self._steps[m]))
                    else:
                        arrays[m] = to_features(array, zero=self._zero, steps=self._steps[m])
                label = float(plain["label"][i])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{self._path}: {split} sample {name!r}: {error}") from error
            own = [int(given[m][i]) if given[m] else nested[m].steps(i) for m in MODALITIES]
            if not given["text"] and self._columns["text"] == "text_bert":
                own[0] = int(arrays["text"][1].sum())
            yield Sample(
                id=name,
                split=split,
                label=label,
                raw_text=to_text(plain["raw_text"][i]) if plain["raw_text"] else "",
                lengths=(own[0], own[1], own[2]),
                **arrays,
            )

    def _survey(self, piece: int, bad: dict[str, tuple[int, str]]) -> None:
        """Learn a row group's counts, steps and non-finite values."""
        table = self._pieces[piece].to_table(schema=self._dataset.schema, use_threads=False)
        splits = np.asarray(table.column("split").to_pylist(), dtype=object)
        unknown = sorted({str(split) for split in splits.tolist()} - set(SPLITS))
        if unknown:
            raise ValueError(f"{self._path}: split {unknown[0]!r} is unknown; use {', '.join(SPLITS)}")
        for number, split in enumerate(SPLITS):
            self._counts[number, piece] = int((splits == split).sum())
        ids = _optional(table, "id")
        for modality, column in self._columns.items():
            nested = Nested(table.column(column), column, self._path)
            tokens = column == "text_bert"
            self._steps[modality] = max(self._steps[modality], nested.width if tokens else nested.longest)
            for row, count in nested.nonfinite():
                name = f"{splits[row]}/{modality}"
                before, first = bad.get(name, (0, to_text(ids[row])))
                bad[name] = before + count, first

    def _rows(self, piece: int, split: int) -> pa.Table:
        """The rows of one split in a row group; the last answer is kept, as shards share row groups."""
        if self._kept is None or self._kept[:2] != (piece, split):
            chosen = ds.field("split") == SPLITS[split]
            table = self._pieces[piece].to_table(schema=self._dataset.schema, filter=chosen, use_threads=False)
            self._kept = piece, split, table
        return self._kept[2]


def _open(path: Path) -> ds.Dataset:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    kinds = {TABLE_SUFFIXES[file.suffix] for file in files if file.suffix in TABLE_SUFFIXES}
    if len(kinds) != 1 or not path.exists():
        raise ValueError(f"{path} is no table: give a .parquet or .arrow file, or a directory of one of them")
    try:
        return ds.dataset(path, format=kinds.pop(), partitioning="hive")
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no table that can be read: {str(error).splitlines()[0]}") from error


def _pieces(dataset: ds.Dataset) -> list[Any]:
    fragments = sorted(dataset.get_fragments(), key=lambda fragment: fragment.path)
    if isinstance(dataset.format, ds.ParquetFileFormat):
        return [piece for fragment in fragments for piece in fragment.split_by_row_group()]
    return fragments


def _columns(schema: pa.Schema, path: str, text: TextChoice) -> dict[str, str]:
    """Which column holds a modality."""
    if text == "auto":
        text = "features" if "text" in schema.names else "tokens"
    columns = {"text": "text" if text == "features" else "text_bert", "audio": "audio", "vision": "vision"}
    missing = [name for name in ("split", "id", "label", *columns.values()) if name not in schema.names]
    if missing:
        raise ValueError(f"{path} lacks the column {missing[0]}; it has {', '.join(schema.names)}")
    return columns


def _optional(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist() if name in table.schema.names else []


def _pad_tokens(array: NDArray[Any], steps: int) -> NDArray[Any]:
    if array.shape[0] != 3:
        raise ValueError(f"text_bert has shape {array.shape}; it must be [3, T]")
    return np.pad(array, ((0, 0), (0, steps - array.shape[1])))
