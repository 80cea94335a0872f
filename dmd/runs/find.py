"""Finding run directories below folders."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from dmd.checkpoint.saver import CHECKPOINTS
from dmd.documents import DOCUMENT, LINES

_BEGUN = (LINES, CHECKPOINTS)
"""What a directory without run.json has where one was lost."""


def find_runs(folders: Iterable[Path], remark: Callable[[str], None]) -> list[Path]:
    """The run directories below folders, each once, in the order of their names; links are followed.

    The folders of a run itself (its checkpoints, features and reports) are not searched.

    Args:
        remark: is told of what is left out, and why.

    Raises:
        ValueError: a folder that is not there.
    """
    found: dict[Path, None] = {}
    seen: set[tuple[int, int]] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no directory {folder}; name one with runs in it, made by `dmd train --run`")
        found |= dict.fromkeys(_below(folder, seen, remark))
    return list(found)


def _below(folder: Path, seen: set[tuple[int, int]], remark: Callable[[str], None]) -> Iterable[Path]:
    walk = os.walk(folder, followlinks=True, onerror=lambda error: remark(f"{error.filename}: {error.strerror}"))
    for name, folders, files in walk:
        about = os.stat(name)
        place = (about.st_dev, about.st_ino)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        if DOCUMENT in files:
            folders.clear()
            yield Path(name)
            continue
        lost = [part for part in _BEGUN if part in files or part in folders]
        if lost:
            remark(f"{name} has {' and '.join(lost)} and no {DOCUMENT}: not the directory of a run, or a damaged one")
            folders.clear()
        folders.sort()
