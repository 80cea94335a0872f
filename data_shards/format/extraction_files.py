"""What a directory of `dmd extract` consists of; `dmd shard` knows it by these names."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

SETTINGS_KEY = b"dmd.extraction"
"""Key of a Parquet schema's metadata: how the features were made, as JSON."""
SETTINGS_FILE = "_extraction.json"
FAILURES_FILE = "_failed.csv"
WARNINGS_FILE = "_warnings.csv"
"""Files beside the features, which hold no samples: pyarrow reads past what begins with `_`."""
FORMER_NAMES = {name: name.removeprefix("_") for name in (SETTINGS_FILE, FAILURES_FILE, WARNINGS_FILE)}
"""What earlier versions called these files."""
WORK_DIRECTORY = ".extracting"
"""Features of single clips, until all are there."""
OWN_FILES = frozenset({*FORMER_NAMES, *FORMER_NAMES.values()})
"""All of these names."""
_FACTS = frozenset({"dims", "face_model", "text_digest", "versions"})
"""Settings that are no choices."""


def own_file(folder: Path, name: str) -> Path:
    """A file of a set, under its former name where only that is there."""
    former = folder / FORMER_NAMES[name]
    return former if former.is_file() and not (folder / name).is_file() else folder / name


def check_finished(place: Path) -> None:
    """Raise ValueError for features that an extraction has not finished: a file, or a directory or one below it."""
    whole = place.absolute()
    found = [path for path in (whole, *whole.parents) if path.name == WORK_DIRECTORY]
    if place.is_dir():
        found += place.rglob(WORK_DIRECTORY)
    elif (place.parent / WORK_DIRECTORY).exists():
        found.append(place.parent / WORK_DIRECTORY)
    if found:
        raise ValueError(
            f"{found[0].parent} lacks clips: `dmd extract` works on it, or was interrupted; the same command continues"
        )


def extraction_of(schema: pa.Schema) -> str:
    """How the features of a Parquet file were made, as JSON; empty where the file does not say."""
    return (schema.metadata or {}).get(SETTINGS_KEY, b"").decode(errors="replace")


def read_extraction(written: str, path: object) -> dict[str, Any]:
    """The settings that `extraction_of` gave for the files of `path`. Raises ValueError for what is no JSON object."""
    try:
        settings = json.loads(written) if written else {}
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: {SETTINGS_KEY.decode()} in its metadata is no JSON object; extract the clips again")
    return settings


def made_tokens_with(settings: dict[str, Any]) -> dict[str, str]:
    """`name` and `digest` of the tokenizer that made token ids of clips; empty where none did."""
    if settings.get("text") != "tokens":
        return {}
    return {"name": str(settings.get("text_encoder")), "digest": str(settings.get("text_digest"))}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The settings that differ, such as "vision mediapipe-blendshapes and none"; what follows from choices (digests,
    versions) where no choice differs."""
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    named = [name for name in changed if name not in _FACTS] or changed
    return [f"{name} {before.get(name)} and {now.get(name)}" for name in named]
