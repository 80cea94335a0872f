"""Which computational sequence is text, audio, vision, labels and words: as the user says, by name."""

from collections.abc import Sequence
from pathlib import Path

from data_shards.file_kinds import HDF5_NAME, kind_of
from data_shards.format.schema import MODALITIES
from data_shards.sources.csd.files import CsdFile
from data_shards.sources.paths import named_files, where_of

ROLES = (*MODALITIES, "labels", "words")
"""`words` are the words themselves, for the sentences; all others are needed, or `words` in the place of `text`."""
_SUFFIX = ".csd"
_MAX_NAMED = 12
"""Files that a message names."""


def sequence_files(paths: Sequence[Path]) -> list[Path]:
    """The computational sequences among what the user named: .csd, and other HDF5 files that were named themselves."""
    return [file for file, _ in named_files(paths) if file.suffix.lower() == _SUFFIX or _is_named_hdf5(file, paths)]


def find_roles(
    paths: Sequence[Path], named: dict[str, str], *, from_transcripts: bool = False
) -> tuple[dict[str, Path], dict[Path, str]]:
    """The file of each role; and the files that have none, each with its name inside the place that was given.

    Args:
        paths: the user's files and directories.
        named: role -> a file's name (with or without .csd), its path, or the sequence's own name.
        from_transcripts: whether text is to be made of the words, so that those are needed and not text.

    Raises:
        ValueError: a role without a name; a name that fits no file, or several.
    """
    files = sequence_files(paths)
    where = where_of(paths)
    if unknown := set(named) - set(ROLES):
        raise ValueError(f"--csd names {unknown.pop()!r}; it may name {', '.join(ROLES)}")
    spare = "text" if from_transcripts else "words"
    if missing := [role for role in ROLES if role not in named and role != spare]:
        there = _describe(files) or "none"
        raise ValueError(
            f"{where}: --csd does not say which computational sequence is {', '.join(missing)}; give "
            "--csd text=FILE,audio=FILE,vision=FILE,labels=FILE (and words=FILE for sentences; with --tokenizer or "
            f"--word-vectors in the place of text); there are {there}"
        )
    found = {role: _find(name, role, files, where) for role, name in named.items()}
    for role, file in found.items():
        other = next((name for name, same in found.items() if name != role and same == file), None)
        if other is not None:
            raise ValueError(f"--csd: {role} and {other} are the same file, {file}; name one for each")
    return found, {file: name for file, name in named_files(paths) if file not in found.values()}


def _find(name: str, role: str, files: Sequence[Path], where: str) -> Path:
    """The file that a name means."""
    path = Path(name).absolute()
    fits = [file for file in files if name in (file.name, file.stem) or file.absolute() == path]
    fits = fits or [file for file in files if _root(file) == name]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise ValueError(f"--csd {role}={name} fits {fits[0]} and {fits[1]}; give its path")
    raise ValueError(
        f"--csd {role}={name}: {where} holds no computational sequence of this name; there are "
        f"{_describe(files) or 'none'}"
    )


def _describe(files: Sequence[Path]) -> str:
    more = f", ... ({len(files)} of them)" if len(files) > _MAX_NAMED else ""
    return ", ".join(file.name for file in files[:_MAX_NAMED]) + more


def _root(file: Path) -> str:
    with CsdFile(file) as sequence:
        return sequence.root


def _is_named_hdf5(file: Path, paths: Sequence[Path]) -> bool:
    kind = kind_of(file) if file in paths else None
    return kind is not None and kind.name == HDF5_NAME
