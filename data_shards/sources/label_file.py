"""Label files as MMSA has them: csv with one row per clip.

Columns are video_id, clip_id, text, label, label_T, label_A, label_V, annotation and mode, of which only `video_id` and
`clip_id` (or `id` alone) and that of the labels must be there, in any case. `mode` (or `split`) names the split, under
any of its names. MMSA joins features and labels by `VIDEO$_$CLIP` (https://github.com/thuiar/MMSA-FET,
src/MSA_FET/dataset.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_shards.labels import Labels
from data_shards.sources.conversions import DECIMAL_COMMA
from data_shards.sources.csv_rows import NO_NAME, NO_NUMBER, SPLIT_COLUMNS, read_csv
from data_shards.sources.left_out import named, some
from data_shards.sources.splits import KNOWN, split_of
from data_shards.sources.table_labels import LabelColumns

_WHAT = "a label file (csv with video_id and clip_id, or id)"
_ID, _VIDEO, _CLIP, _TEXT = "id", "video_id", "clip_id", "text"
_CLASS = "class"
_OWN = frozenset({_ID, _VIDEO, _CLIP, _TEXT, _CLASS, "label", *SPLIT_COLUMNS})


@dataclass(frozen=True, kw_only=True)
class ClipLabels:
    """One row."""

    line: int
    names: tuple[str, ...]
    """The ids that features of the clip may have; the first is MMSA's."""
    split: str
    """"" where the file names none."""
    raw_text: str
    fields: dict[str, Any]
    """The fields of a `Sample` about labels."""


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """The rows of a file, and what is to be said of it."""

    path: str
    clips: tuple[ClipLabels, ...]
    left_out: dict[str, int]
    """Rows and columns that no label comes from -> how many."""
    notes: tuple[str, ...]
    """Lines for the user."""


def read_label_file(
    path: str | Path, declared: Labels, *, column: str | None = None, class_labels: bool = False
) -> LabelFile:
    """Read a label file.

    Args:
        declared: what the user says of the labels; its emotions have a column each.
        column: of the labels; None: `label`, or `class` of classes.
        class_labels: read the column `class` beside the sentiments.

    Raises:
        ValueError: no such file or column; a row that says nothing of its clip; an unknown split; a label that is no
            number; a clip with two rows.
    """
    header, rows = read_csv(path, _WHAT, (_VIDEO, _ID))
    columns = [name.lower() if name.lower() in _OWN else name for name in header]
    if _ID not in columns and _CLIP not in columns:
        raise ValueError(f"{path} has the column {_VIDEO} and lacks {_CLIP}; it has {', '.join(columns)}")
    labels = _label_columns(columns, declared, column, path, class_labels=class_labels)
    split_column = next((name for name in SPLIT_COLUMNS if name in columns), None)
    clips: list[ClipLabels] = []
    unlabelled: list[str] = []
    commas = 0
    lines: dict[str, int] = {}
    twice: list[str] = []
    for line, fields in rows:
        row = dict(zip(columns, fields, strict=True))
        where = f"{path}: line {line}"
        names = _names(row, where)
        twice += [f"{name!r} in lines {lines[name]} and {line}" for name in names if name in lines][:1]
        lines |= {name: lines.get(name, line) for name in names}
        split = _split(row, split_column, where)
        values = {name: None if _is_missing(row[name], name) else row[name] for name in labels.names}
        if None in values.values():
            unlabelled.append(names[0])
            continue
        commas += sum(bool(DECIMAL_COMMA.fullmatch(row[name])) for name in labels.names)
        try:
            found = labels.read(values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        clips.append(ClipLabels(line=line, names=names, split=split, raw_text=row.get(_TEXT, "").strip(), fields=found))
    if twice:
        raise ValueError(f"{path}: {len(twice)} clips have more than one row: {some(twice)}; leave one row each")
    if not clips:
        raise ValueError(
            f"{path}: none of its {len(unlabelled)} rows has a label in {', '.join(labels.names)}; choose another "
            f"column with --label-column: it has {', '.join(columns)}"
        )
    read = {_ID, _VIDEO, _CLIP, _TEXT, split_column, *labels.names}
    count = len(clips) + len(unlabelled)
    unread = {f"column {name} of {Path(path).name}": count for name in columns if name not in read}
    notes = (f"{path}: {commas} labels with a decimal comma, read as decimal numbers",) if commas else ()
    left_out = {**unread, **named(f"rows of {Path(path).name} without a label", unlabelled)}
    return LabelFile(path=str(path), clips=tuple(clips), left_out=left_out, notes=notes)


def _label_columns(
    columns: Sequence[str], declared: Labels, column: str | None, path: str | Path, *, class_labels: bool
) -> LabelColumns:
    """The columns that labels are read from; `ValueError` where one is not there."""
    found = LabelColumns.find(columns, declared, class_labels=class_labels, label=column)
    missing = [name for name in found.names if name not in columns]
    if missing:
        raise ValueError(
            f"{path} lacks the column {missing[0]}; it has {', '.join(columns)}: name that of the labels with "
            "--label-column"
        )
    return found


def _names(row: Mapping[str, str], where: str) -> tuple[str, ...]:
    """The ids that features of a row's clip may have."""
    if _ID in row:
        if not row[_ID].strip():
            raise ValueError(f"{where} has no {_ID}; fill it, or leave the row out")
        return (row[_ID].strip(),)
    video, clip = row[_VIDEO].strip(), row[_CLIP].strip()
    if not video or not clip:
        raise ValueError(f"{where} has no {_CLIP if video else _VIDEO}; fill it, or leave the row out")
    return f"{video}$_${clip}", f"{video}/{clip}"


def _split(row: Mapping[str, str], column: str | None, where: str) -> str:
    if column is None:
        return ""
    split = split_of(row[column])
    if split is None:
        raise ValueError(f"{where}: {column} {row[column]!r} is unknown; use {KNOWN}")
    return split


def _is_missing(value: str, column: str) -> bool:
    return value.strip().lower() in (NO_NAME if column == _CLASS else NO_NUMBER)
