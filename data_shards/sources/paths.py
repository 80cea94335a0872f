"""What a user names as features: a file, a directory of files, or several of both."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_shards.file_kinds import is_macos_metadata

Paths = str | Path | Sequence[str | Path]
"""One place of features, or several that belong together."""


def to_paths(given: Paths) -> tuple[Path, ...]:
    """The places; at least one."""
    found = (Path(given),) if isinstance(given, str | Path) else tuple(map(Path, given))
    assert found
    return found


def where_of(paths: Sequence[Path]) -> str:
    """What errors call them all."""
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def default_name(paths: Sequence[Path]) -> str:
    """The data set's name where the user gives none: the file's; of several files their directory's."""
    return paths[0].stem if len(paths) == 1 else paths[0].absolute().parent.name


def named_files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """All files in order, those in directories too, each with its name inside the place that was given."""
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inside:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            if not is_macos_metadata(name):
                yield file, name
