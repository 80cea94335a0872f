"""Label files: a csv with a row per utterance, as MMSA's label.csv or written by hand or by a spreadsheet.

Columns, in any order and case; others are ignored and counted:

- `id`, or `video_id` and `clip_id` (the id then is `video_id$_$clip_id`, as in MMSA's pickles);
- `split` or `mode`: train, valid or test, by any of their names;
- `label` (a sentiment), or `class` (a number or a name), or one column per emotion, which the caller names (above 0: it
  is there);
- `text`: what is said;
- `file`, `start` and `stop`: the recording, and the seconds of it that the utterance takes.

Commas, semicolons or tabs between the values, decimal commas, a byte order mark and UTF-16 are read.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from data_shards.durable import as_unreadable
from data_shards.file_kinds import UTF16_NAME, check_file_kind
from data_shards.sources.conversions import DECIMAL_COMMA
from data_shards.sources.csv_rows import NO_NAME, NO_NUMBER, SPLIT_COLUMNS, decode, separator_of
from data_shards.sources.splits import KNOWN, split_of

Label = float | int | str
LabelColumns = Literal["label", "class", "emotions", "none"]
ID_SEPARATOR = "$_$"
"""Between video and clip in the ids of MMSA."""
_NO_LABELS = ("id", "video_id", "clip_id", "text", "file", "start", "stop")
_OTHER_NAMES = (*_NO_LABELS, "label", "class")
_OF_FEATURES = ("raw_text", "text_bert", "audio", "vision")
_WHOLE = re.compile(r"\d+(\.0*)?")


class _RowError(ValueError):
    """A row that cannot be used; the text is the reason."""


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One utterance."""

    line: int
    """Of the file, from 1."""
    id: str
    video: str
    """As in `video_id`; empty where the file has no such column."""
    split: str
    """train, valid or test; empty where the file has no such column."""
    labels: dict[str, Label]
    """Column -> label: `label`, `class`, or one per emotion. Classes are numbers where those of all rows are, otherwise
    names."""
    text: str | None
    """None where the file has no such column."""
    file: str
    """As in `file`; empty where there is none."""
    start: float | None
    """Seconds."""
    stop: float | None

    def says_the_same(self, other: "LabelRow") -> bool:
        """Whether two rows are equal but for their line."""
        return {**vars(self), "line": 0} == {**vars(other), "line": 0}


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """The rows of a label file."""

    path: Path
    kind: LabelColumns
    rows: tuple[LabelRow, ...]
    """Rows that can be used, in their order; each id once."""
    faults: tuple[tuple[str, str], ...]
    """(id or line, reason) of the rows that cannot be used."""
    faulty: frozenset[str]
    """What those rows call their clips: ids, files and videos."""
    notes: dict[str, int] = field(default_factory=dict)
    """What was read otherwise than written, or not read -> how often."""


@dataclass(frozen=True)
class _Columns:
    """Where the values of a row are."""

    places: dict[str, int]
    """By name in lower case."""
    split: str
    """`split` or `mode`; empty: neither is there."""
    kind: LabelColumns
    labels: tuple[str, ...]
    """The columns of labels, emotions as the caller spells them."""


def read_label_table(path: Path, *, emotions: Sequence[str] = ()) -> LabelTable:
    """Read a label file. A row that cannot be used is a fault, and does not stop the others.

    Args:
        emotions: the columns of a multi-label file, in any case; the labels are called as they are here.

    Raises:
        ValueError: no csv, or columns are missing.
    """
    lines, separator = _read(path)
    if not lines:
        raise ValueError(f"{path} is empty; write a header such as id,split,label,text and a row per clip")
    header = [name.strip() for name in lines[0][1]]
    columns = _find_columns(path, header, [name.strip() for name in emotions])
    notes: dict[str, int] = {}
    if separator != ",":
        notes[f"separated by {'semicolons' if separator == ';' else 'tabs'}"] = len(lines) - 1
    for name in header:
        if name.lower() not in {*map(str.lower, columns.labels), *_NO_LABELS, columns.split}:
            notes[f"column {name or '(without a name)'} not used"] = len(lines) - 1
    rows: dict[str, LabelRow] = {}
    faults: list[tuple[str, str]] = []
    faulty: set[str] = set()
    conflicting: set[str] = set()
    for line, values in lines[1:]:
        try:
            row = _to_row(line, values, columns, len(header), notes)
        except _RowError as error:
            faults.append((_name_of(values, columns, line), str(error)))
            faulty.update(_clip_names(values, columns, line))
            continue
        before = rows.setdefault(row.id, row)
        if before is not row and before.says_the_same(row):
            notes["rows that repeat another"] = notes.get("rows that repeat another", 0) + 1
        elif before is not row:
            conflicting.add(row.id)
            faulty.update({row.id, before.file, row.file, row.video})
            faults.append((row.id, f"lines {before.line} and {line} say different things of it; leave one"))
    kept = [row for row in rows.values() if row.id not in conflicting]
    if all(_WHOLE.fullmatch(str(row.labels.get("class", ""))) for row in kept):
        kept = [replace(row, labels={**row.labels, "class": int(float(row.labels["class"]))}) for row in kept]
    return LabelTable(
        path=path,
        kind=columns.kind,
        rows=tuple(kept),
        faults=tuple(faults),
        faulty=frozenset(faulty - {""}),
        notes=notes,
    )


def _read(path: Path) -> tuple[list[tuple[int, list[str]]], str]:
    """The lines that are not empty, each with its number, and what separates their values."""
    check_file_kind(path, "a csv file of labels", allowed=(UTF16_NAME,))
    with as_unreadable(path):
        text = decode(path)
    separator = separator_of(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        return [(reader.line_num, values) for values in reader if any(map(str.strip, values))], separator
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: {error}; write it as csv again") from error


def _find_columns(path: Path, header: Sequence[str], emotions: Sequence[str]) -> _Columns:
    places: dict[str, int] = {}
    for place, name in enumerate(header):
        if name.lower() in places and name:
            raise ValueError(f"{path} has two columns {name}; leave one")
        places[name.lower()] = place
    there = f"it has {', '.join(name or '(without a name)' for name in header)}"
    if "id" not in places and not {"video_id", "clip_id"} <= places.keys():
        raise ValueError(f"{path} has neither a column id nor video_id and clip_id; {there}")
    if twice := [name for name in emotions if [*map(str.lower, emotions)].count(name.lower()) > 1]:
        raise ValueError(f"the emotion {twice[0]} is named twice; leave one")
    reserved = [name for name in emotions if name.lower() in (*SPLIT_COLUMNS, *_OTHER_NAMES, *_OF_FEATURES)]
    if reserved:
        raise ValueError(f"an emotion is called {reserved[0]}, as a column of another meaning is; rename its column")
    lacking = [name for name in emotions if name.lower() not in places]
    if lacking:
        raise ValueError(f"{path} lacks the column {lacking[0]} that is named as an emotion; {there}")
    kind: LabelColumns = "emotions" if emotions else "label" if "label" in places else "class"
    if kind == "class" and "class" not in places:
        kind = "none"
    labels = tuple(emotions) if emotions else (kind,) if kind != "none" else ()
    if not emotions and {"label", "class"} <= places.keys():
        labels = ("label", "class")
    return _Columns(places, next((name for name in SPLIT_COLUMNS if name in places), ""), kind, labels)


def _to_row(line: int, values: Sequence[str], columns: _Columns, width: int, notes: dict[str, int]) -> LabelRow:
    if len(values) != width:
        raise _RowError(
            f"line {line} has {len(values)} values, and the header {width}; a value that holds the separator needs "
            "quotation marks"
        )

    def value(name: str) -> str:
        place = columns.places.get(name.lower())
        return "" if place is None else values[place].strip()

    split = ""
    if columns.split:
        found = split_of(value(columns.split))
        if found is None:
            raise _RowError(f"line {line}: {columns.split} {value(columns.split)!r} is unknown; use {KNOWN}")
        split = found
    if not _id_of(values, columns):
        raise _RowError(f"line {line} has no id")
    start, stop = (_seconds(value(name), name, line, notes) for name in ("start", "stop"))
    if stop is not None and stop <= (start or 0.0):
        raise _RowError(f"line {line}: stop {stop:g} is not after start {start or 0.0:g}")
    return LabelRow(
        line=line,
        id=_id_of(values, columns),
        video=value("video_id"),
        split=split,
        labels=dict(_labels(value, columns, line, notes)),
        text=value("text") if "text" in columns.places else None,
        file=value("file"),
        start=start,
        stop=stop,
    )


def _labels(
    value: Callable[[str], str], columns: _Columns, line: int, notes: dict[str, int]
) -> Iterator[tuple[str, Label]]:
    for name in columns.labels:
        written = value(name)
        if written.lower() in (NO_NAME if name == "class" else NO_NUMBER):
            raise _RowError(f"line {line}: {name} is empty")
        if name == "class":
            yield name, written
            continue
        number = _number(written, notes)
        if number is None:
            raise _RowError(f"line {line}: {name} {written!r} is not a number")
        if columns.kind == "emotions" and number < 0:
            raise _RowError(f"line {line}: {name} is {written}; an emotion is there (above 0) or not (0)")
        yield name, number


def _seconds(written: str, name: str, line: int, notes: dict[str, int]) -> float | None:
    if written.lower() in NO_NUMBER:
        return None
    number = _number(written, notes)
    if number is None or number < 0:
        raise _RowError(f"line {line}: {name} {written!r} is no time in seconds")
    return number


def _number(written: str, notes: dict[str, int]) -> float | None:
    """A finite number; None for anything else."""
    if DECIMAL_COMMA.fullmatch(written):
        written = written.replace(",", ".")
        notes["numbers with a decimal comma"] = notes.get("numbers with a decimal comma", 0) + 1
    try:
        number = float(written)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def _id_of(values: Sequence[str], columns: _Columns) -> str:
    if "id" in columns.places:
        return values[columns.places["id"]].strip()
    video, clip = (values[columns.places[name]].strip() for name in ("video_id", "clip_id"))
    return f"{video}{ID_SEPARATOR}{clip}" if video and clip else ""


def _name_of(values: Sequence[str], columns: _Columns, line: int) -> str:
    """What a fault calls a row."""
    try:
        return _id_of(values, columns) or f"line {line}"
    except IndexError:
        return f"line {line}"


def _clip_names(values: Sequence[str], columns: _Columns, line: int) -> set[str]:
    """What a row that cannot be used calls its clip, as far as it has values."""
    places = (columns.places.get(name, len(values)) for name in ("file", "video_id"))
    return {_name_of(values, columns, line), *(values[place].strip() for place in places if place < len(values))}
