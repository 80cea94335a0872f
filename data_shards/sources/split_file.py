"""A file that says which video, or which clip, belongs to which split: JSON, csv, or the folds of the CMU SDK."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_shards.file_kinds import check_file_kind, kind_of
from data_shards.sources.csv_rows import SPLIT_COLUMNS, read_csv
from data_shards.sources.splits import KNOWN, named_split, split_of, splits_in_path

_WHAT = "a file of splits (JSON, csv or the SDK's folds)"
_NAMES = ("video_id", "video", "id")


def read_split_file(path: str | Path) -> dict[str, str]:
    """Video or clip -> its split.

    A JSON file is `{split: [videos]}` or `{video: split}`. A csv file has columns `video_id` (or `video`, `id`) and
    `split` (or `mode`); with `clip_id` too, it names clips `VIDEO[CLIP]`. The SDK's folds are a Python file with lists
    such as `standard_train_fold = ["v1", ...]`, which is read and not run.

    Raises:
        ValueError: none of these; an unknown split; a video in two splits.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind is not None and kind.name == "a JSON file":
        pairs = _from_json(path)
    elif path.suffix == ".py":
        check_file_kind(path, _WHAT, allowed=())
        pairs = _from_python(path)
    else:
        pairs = _from_csv(path)
    found: dict[str, str] = {}
    for name, split in pairs:
        if found.setdefault(name, split) != split:
            raise ValueError(f"{path}: {name!r} is in {found[name]} and in {split}; leave it in one")
    if not found:
        raise ValueError(f"{path} names no video; give {_WHAT}")
    return found


def _from_json(path: Path) -> Iterator[tuple[str, str]]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON list; give {{split: [videos]}} or {{video: split}}")
    for name, content in value.items():
        if isinstance(content, list):
            yield from _names(content, named_split(name, f"{path}: split"), path)
        else:
            yield name, named_split(content, f"{path}: split of {name!r}")


def _from_python(path: Path) -> Iterator[tuple[str, str]]:
    """The lists that a Python file assigns to names with a split's name among their words."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not Python that can be read: {error}") from error
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        splits = splits_in_path(node.targets[0].id)
        try:
            content = ast.literal_eval(node.value)
        except ValueError:
            content = None
        if len(splits) == 1 and isinstance(content, list):
            yield from _names(content, splits.pop(), path)


def _names(content: list[Any], split: str, path: Path) -> Iterator[tuple[str, str]]:
    for name in content:
        if not isinstance(name, str):
            raise ValueError(f"{path}: {split} names {name!r:.60}, which is no text; give the ids of videos")
        yield name, split


def _from_csv(path: Path) -> Iterator[tuple[str, str]]:
    columns, rows = read_csv(path, _WHAT, _NAMES)
    name_column = next(name for name in _NAMES if name in columns)
    split_column = next((name for name in SPLIT_COLUMNS if name in columns), None)
    if split_column is None:
        raise ValueError(f"{path} lacks the column split (or mode); it has {', '.join(columns)}")
    found: list[tuple[str, str, str]] = []
    for line, row in rows:
        values = dict(zip(columns, row, strict=True))
        if split_of(values[split_column]) is None:
            raise ValueError(f"{path}: line {line}: split {values[split_column]!r} is unknown; use {KNOWN}")
        clip = values["clip_id"].strip() if "clip_id" in columns else ""
        split = named_split(values[split_column], f"{path}: line {line}: split")
        found.append((values[name_column].strip(), clip, split))
    of_video: dict[str, set[str]] = {}
    for video, _, split in found:
        of_video.setdefault(video, set()).add(split)
    for video, clip, split in found:
        yield f"{video}[{clip}]" if clip and len(of_video[video]) > 1 else video, split
