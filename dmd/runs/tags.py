"""Names that a user gives a run: RUN/tags.json, a list of words, which no training writes or removes."""

import json
import re
from pathlib import Path

from data_shards.durable import locked, read_regular, replace_file
from dmd.documents import read_document

TAGS = "tags.json"
_LOCK = ".tags-lock"
"""Beside it, while a command changes it."""
_NAME = re.compile(r"[\w.:@+-]{1,64}")


def read_tags(run: Path) -> tuple[str, ...]:
    """The tags of a run, in their order.

    Raises:
        ValueError: a damaged file, or no regular one.
    """
    path = run / TAGS
    try:
        file = read_regular(path)
    except FileNotFoundError:
        return ()
    try:
        with file:
            tags = json.loads(file.read())
    except (ValueError, RecursionError):
        tags = None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"{path} is no list of words; remove it, and tag the run again")
    return tuple(tags)


def check_tag(name: str) -> None:
    """Raise ValueError for a name that is no tag."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"the tag is {name!r}; give letters, digits and any of _.:@+-, at most 64, and no spaces")


def change_tags(run: Path, *, add: list[str], remove: list[str]) -> tuple[str, ...]:
    """Add tags to a run and remove some; returns what it has then. The file is replaced whole, by one
    command at a time.

    Raises:
        ValueError: not the directory of a run, or a tag to remove that it does not have.
    """
    read_document(run)
    with locked(run / _LOCK):
        tags = list(read_tags(run))
        for name in remove:
            if name not in tags:
                raise ValueError(f"{run} has no tag {name!r}; it has {', '.join(tags) or 'none'}")
            tags.remove(name)
        tags += [name for name in add if name not in tags]
        if tags:
            replace_file(run / TAGS, json.dumps(tags).encode() + b"\n")
        else:
            (run / TAGS).unlink(missing_ok=True)
    return tuple(tags)
