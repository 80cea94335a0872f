"""Which source fits a file or directory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_shards.executor import Executor
from data_shards.file_kinds import is_macos_metadata
from data_shards.format.schema import MODALITIES, check_choice
from data_shards.safe_pickle.load import Pickle
from data_shards.sources.misa import MisaSource
from data_shards.sources.mmsa import MmsaSource, Nonfinite, TextChoice
from data_shards.sources.paths import Paths, default_name, named_files, to_paths, where_of
from data_shards.sources.pickle_files import PickleFilesSource
from data_shards.sources.splits import find_splits, splits_in_path
from data_shards.sources.table import TableSource, table_format

Format = Literal["auto", "mmsa", "misa", "table"]
_PICKLES = (".pkl", ".pickle")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to read features; an option that a format does not have is rejected."""

    name: str | None = None
    format: Format = "auto"
    text: TextChoice = "auto"
    nonfinite: Nonfinite = "refuse"
    others: dict[str, str] = field(default_factory=dict)
    """Modality -> the MMSA pickle that it comes from instead."""
    class_labels: bool = False
    """Read the class labels of an MMSA pickle too."""
    classes: bool = False
    """The labels are class numbers; an MMSA pickle may have them in `classification_labels` only."""
    need_ids: bool = True
    """Whether a file must have ids."""


AnySource = MmsaSource | MisaSource | PickleFilesSource | TableSource


def open_source(path: Paths, options: SourceOptions, executor: Executor | None = None) -> AnySource:
    """The source for a feature pickle, a table, directories of them, or several of one kind.

    Args:
        executor: where many files are looked at; None: in this process.

    Raises:
        ValueError: no source fits, or a file cannot be read.
    """
    check_choice(options.format, Format, "--format")
    check_choice(options.text, TextChoice, "--text")
    check_choice(options.nonfinite, Nonfinite, "--nonfinite")
    if unknown := set(options.others) - set(MODALITIES):
        raise ValueError(f"{unknown.pop()!r} is no modality; use {', '.join(MODALITIES)}")
    for given in (path,) if isinstance(path, str | Path) else path:
        _check_place(given)
    paths = to_paths(path)
    alone = len(paths) == 1 and not paths[0].is_dir()
    pickles = [] if alone else _pickles(paths)
    is_table = table_format(paths[0]) is not None if alone else not pickles
    if options.format == "table" or (options.format == "auto" and is_table):
        return _open_table(paths, options, executor)
    if alone or (len(paths) == 1 and _is_misa_directory(paths[0])):
        return _open_pickle(paths[0], options)
    return _open_pickle_files(paths, pickles, options, executor)


def _open_table(paths: Sequence[Path], options: SourceOptions, executor: Executor | None) -> TableSource:
    """The source of a table."""
    _check_options(options, "table")
    _check_all_taken(paths, [path for path in paths if table_format(path)], "a table")
    return TableSource(
        paths,
        name=options.name,
        text=options.text,
        nonfinite=options.nonfinite,
        need_ids=options.need_ids,
        executor=executor,
    )


def _open_pickle(
    path: Path,
    options: SourceOptions,
    *,
    opened: Pickle | None = None,
    split: str | None = None,
    checked: bool = False,
) -> MmsaSource | MisaSource:
    """The source of one pickle, or of a directory with one MISA pickle per split.

    Args:
        opened: the pickle, where it is open.
        split: whose fields or samples it holds, where it holds those of one split.
        checked: whether non-finite values were looked for before.
    """
    kind: Format = "misa" if path.is_dir() else options.format
    if kind == "auto":
        opened = opened or Pickle(path)
        kind = _pickle_kind(_splits_inside(opened, str(path)) or [opened.value])
    _check_options(options, kind)
    common: dict[str, Any] = {"name": options.name, "nonfinite": options.nonfinite, "need_ids": options.need_ids}
    if kind == "misa":
        return MisaSource(path, text=options.text, opened=opened, split=split, **common)
    return MmsaSource(
        path,
        text=options.text,
        others=dict(options.others),
        class_labels=options.class_labels,
        classes=options.classes,
        opened=opened,
        split=split,
        checked=checked,
        **common,
    )


def _open_pickle_files(
    paths: Sequence[Path], pickles: Sequence[Path], options: SourceOptions, executor: Executor | None
) -> PickleFilesSource:
    """The source of many pickles."""
    if options.others:
        raise ValueError("separate feature files can be given with one MMSA pickle only; leave --feature-* out")
    if not pickles:
        raise ValueError(
            f"{where_of(paths)} holds no .pkl files; give a feature pickle, a directory of them, or a table"
        )
    _check_all_taken(paths, pickles, "a pickle")
    names = dict(named_files(paths))
    source = PickleFilesSource(
        pickles,
        _OpenNamed(options, {file: names[file] for file in pickles}),
        name=options.name or default_name(paths),
        executor=executor,
    )
    for file in names.keys() - set(pickles):
        source.ignored[f"file {names[file]}"] = 1
    return source


@dataclass(frozen=True)
class _OpenNamed:
    """Opens a pickle whose name may say its split. Picklable."""

    options: SourceOptions
    names: dict[Path, str]
    """Each file's name inside the place that the user gave."""

    def __call__(self, file: Path, *, checked: bool = False) -> MmsaSource | MisaSource:
        """Open a file."""
        opened, split = Pickle(file), None
        if not _splits_inside(opened, str(file)):
            split = self._split_of(file)
        return _open_pickle(file, self.options, opened=opened, split=split, checked=checked)

    def _split_of(self, file: Path) -> str:
        found = splits_in_path(self.names[file])
        if len(found) != 1:
            what = f"several splits ({', '.join(sorted(found))})" if found else "none"
            raise ValueError(
                f"{file} has no split inside, and its name says {what}; write a dict {{split: fields}}, or name the "
                "file or its directory for one split, such as train/part_07.pkl"
            )
        return found.pop()


def _check_options(options: SourceOptions, kind: Format) -> None:
    """Reject options that the format of the file does not have."""
    if options.others and kind != "mmsa":
        raise ValueError("separate feature files can be given with MMSA pickles only")
    if options.class_labels and kind != "mmsa":
        raise ValueError("--class-labels takes classification_labels from MMSA pickles only; leave it out")
    if options.class_labels and options.classes:
        raise ValueError("--class-labels keeps class numbers beside sentiments, --classes takes them alone; give one")


def _check_place(given: str | Path) -> None:
    """Raise ValueError where nothing is."""
    if not Path(given).exists():
        hint = "features are read from files: download it and" if "://" in str(given) else "it is not there;"
        raise ValueError(f"{given}: {hint} give a feature pickle, a directory of them, or a table")


def _check_all_taken(paths: Sequence[Path], taken: Sequence[Path], kind: str) -> None:
    """Raise ValueError where one of several files that were named is of another kind than the others."""
    other = next((path for path in paths if len(paths) > 1 and path.is_file() and path not in taken), None)
    if other is not None:
        raise ValueError(f"{other} is not {kind}, as other files here are; give files of one kind")


def _pickles(paths: Sequence[Path]) -> list[Path]:
    """The pickles among many files; none where these are tables, beside which pickles may lie in directories."""
    files = [file for file, _ in named_files(paths)]
    pickles = [file for file in files if file.suffix.lower() in _PICKLES]
    near = any(file in paths or file.parent in paths for file in pickles)
    return pickles if near or not any(map(table_format, files)) else []


def _is_misa_directory(folder: Path) -> bool:
    """Whether a directory has a pickle per split with a list in it."""
    pickles = {file.stem: file for file in folder.iterdir() if file.suffix.lower() == ".pkl" and file.is_file()}
    names = find_splits((name for name in pickles if not is_macos_metadata(pickles[name].name)), str(folder))
    return bool(names) and not isinstance(Pickle(pickles[next(iter(names.values()))]).value, dict)


def _splits_inside(opened: Pickle, where: str) -> list[Any]:
    """What a pickle holds for each of its splits; nothing where it holds what belongs to one."""
    value = opened.value if isinstance(opened.value, dict) else {}
    return [value[name] for name in find_splits(value, where).values()]


def _pickle_kind(parts: list[Any]) -> Format:
    """The kind of a pickle, by what it holds for its splits."""
    return "misa" if isinstance(parts[0], (list, tuple)) else "mmsa"
