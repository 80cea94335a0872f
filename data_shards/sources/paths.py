"""What a user names as features: a file, a directory of files, or several of both."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from data_shards.file_kinds import is_macos_metadata
from data_shards.sources.left_out import named

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


def no_files(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """What directories hold that `named_files` does not give: each name inside the place that was given, and what it
    is."""
    for path in paths:
        for entry in sorted(path.rglob("*")) if path.is_dir() else ():
            name = str(entry.relative_to(path))
            if entry.is_file() or (entry.is_dir() and not entry.is_symlink()) or is_macos_metadata(name):
                continue
            kind = "a link to a directory, which is not followed" if entry.is_dir() else "a pipe or a device"
            yield name, kind if entry.exists() else "a link to nothing"


def count_no_files(paths: Sequence[Path]) -> dict[str, int]:
    """The same as entries of what is ignored: kinds with the first names -> how many."""
    kinds: dict[str, list[str]] = {}
    for name, kind in no_files(paths):
        kinds.setdefault(kind, []).append(name)
    return {entry: count for kind, names in kinds.items() for entry, count in named(kind, names).items()}


def named_files(paths: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """All files in order, those in directories too, each with its name inside the place that was given."""
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inside:
            name = str(file.relative_to(path)) if path.is_dir() else file.name
            if not is_macos_metadata(name):
                yield file, name
