"""Which source fits a file or directory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_shards.executor import Executor
from data_shards.file_kinds import is_macos_metadata
from data_shards.format.schema import MODALITIES, check_choice
from data_shards.labels import Labels
from data_shards.safe_pickle.load import Pickle
from data_shards.sources.arrays import HeldArrays
from data_shards.sources.csd.content import Align
from data_shards.sources.csd.roles import find_roles, sequence_files
from data_shards.sources.csd.source import CsdSource
from data_shards.sources.label_file import read_label_file
from data_shards.sources.labelled import LabelledSource
from data_shards.sources.misa import MisaSource
from data_shards.sources.mmsa import MmsaSource, Nonfinite, TextChoice
from data_shards.sources.mmsa_fet import is_clip
from data_shards.sources.paths import Paths, count_no_files, default_name, named_files, to_paths, where_of
from data_shards.sources.pickle_files import PickleFilesSource
from data_shards.sources.pickled import PICKLE_SUFFIXES
from data_shards.sources.split_file import read_split_file
from data_shards.sources.splits import UNSPLIT, find_splits, splits_in_path
from data_shards.sources.table import TableSource, table_format
from data_shards.writing.source import IdentifiedSource

Format = Literal["auto", "mmsa", "misa", "table", "csd"]


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
    """Read the class labels of an MMSA pickle or a table beside the sentiments."""
    labels: Labels = field(default_factory=Labels)
    """What the labels are; says which fields are read."""
    need_ids: bool = True
    """Whether a file must have ids."""
    label_file: str | None = None
    """A csv file that labels and splits are taken from, by the clip's id."""
    label_column: str | None = None
    """Its column of labels; None: `label`, or `class` of classes."""
    csd: dict[str, str] = field(default_factory=dict)
    """Role (`csd.roles.ROLES`) -> the name of a computational sequence."""
    splits: str | None = None
    """A file that says which video is in which split, for computational sequences."""
    align: Align | None = None
    """What computational sequences are aligned to; None: words."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Modality -> steps of the samples of computational sequences; others get as many as the longest has."""


FeatureSource = MmsaSource | MisaSource | PickleFilesSource | TableSource | CsdSource
AnySource = FeatureSource | LabelledSource


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
    if options.label_file is None:
        if options.label_column is not None:
            raise ValueError("--label-column names a column of a label file; give the file with --labels")
        source = _open_features(paths, options, executor)
        source.ignored.update(count_no_files(paths))
        _forget(source, paths, options.splits)
        return source
    labels = read_label_file(
        options.label_file, options.labels, column=options.label_column, class_labels=options.class_labels
    )
    source = _open_features(paths, options, executor)
    source.ignored.update(count_no_files(paths))
    assert isinstance(source, IdentifiedSource)
    _forget(source, paths, options.label_file)
    return LabelledSource(source, labels, where=where_of(paths))


def open_arrays(held: HeldArrays, options: SourceOptions) -> MmsaSource:
    """The source of arrays in memory, read and checked as an MMSA pickle is.

    Raises:
        ValueError: arrays that do not fit together, or what is no data of a sample.
    """
    check_choice(options.nonfinite, Nonfinite, "--nonfinite")
    _check_options(options, "mmsa")
    return MmsaSource(
        held.where,
        name=options.name,
        text=options.text,
        nonfinite=options.nonfinite,
        class_labels=options.class_labels,
        labels=options.labels,
        need_ids=options.need_ids,
        opened=held,
    )


def _forget(source: FeatureSource, paths: Sequence[Path], used: str | None) -> None:
    """Remove a file that is used beside the features from what is ignored of their directory."""
    for file, name in named_files(paths) if used is not None else ():
        if file.resolve() == Path(used or "").resolve():
            source.ignored.pop(f"file {name}", None)


def _open_features(paths: Sequence[Path], options: SourceOptions, executor: Executor | None) -> FeatureSource:
    """The source of the features; without labels where these come from a file."""
    if options.format == "csd" or (options.format == "auto" and (options.csd or _holds_sequences(paths))):
        return _open_csd(paths, options, executor)
    alone = len(paths) == 1 and not paths[0].is_dir()
    pickles = [] if alone else _pickles(paths)
    is_table = table_format(paths[0]) is not None if alone else not pickles
    if options.format == "table" or (options.format == "auto" and is_table):
        return _open_table(paths, options, executor)
    if alone:
        return _OpenNamed(options, {paths[0]: paths[0].name}, alone=True)(paths[0])
    if len(paths) == 1 and _is_misa_directory(paths[0]):
        return _open_pickle(paths[0], options)
    return _open_pickle_files(paths, pickles, options, executor)


def _open_csd(paths: Sequence[Path], options: SourceOptions, executor: Executor | None) -> CsdSource:
    """The source of computational sequences."""
    _check_options(options, "csd")
    roles, rest = find_roles(paths, options.csd, from_transcripts=options.text == "transcripts")
    if options.splits is None:
        raise ValueError(
            f"{where_of(paths)}: computational sequences do not say which video is in which split; give --splits FILE, "
            "such as the data set's standard folds of the SDK (cmu_mosi_std_folds.py), JSON {split: [videos]} or csv"
        )
    source = CsdSource(
        roles,
        read_split_file(options.splits),
        name=options.name or default_name(paths),
        labels=options.labels,
        align=options.align or "words",
        lengths=options.lengths,
        nonfinite=options.nonfinite,
        executor=executor,
    )
    source.ignored |= {f"file {name}": 1 for name in rest.values()}
    return source


def _open_table(paths: Sequence[Path], options: SourceOptions, executor: Executor | None) -> TableSource:
    """The source of a table."""
    _check_options(options, "table")
    _check_all_taken(paths, [path for path in paths if table_format(path)], "a table")
    return TableSource(
        paths,
        name=options.name,
        text=options.text,
        nonfinite=options.nonfinite,
        class_labels=options.class_labels,
        labels=options.labels,
        need_ids=options.need_ids,
        labelled=options.label_file is None,
        executor=executor,
    )


def _open_pickle(
    path: Path,
    options: SourceOptions,
    *,
    opened: Pickle | None = None,
    split: str | None = None,
    clip: str | None = None,
    checked: bool = False,
) -> MmsaSource | MisaSource:
    """The source of one pickle, or of a directory with one MISA pickle per split.

    Args:
        opened: the pickle, where it is open.
        split: whose fields or samples it holds, where it holds those of one split.
        clip: the id of the clip whose arrays it holds, where it holds those of one.
        checked: whether non-finite values were looked for before.
    """
    kind: Format = "misa" if path.is_dir() else options.format
    if kind == "auto":
        opened = opened or Pickle(path)
        kind = _pickle_kind(_splits_inside(opened, str(path)) or [opened.value])
    _check_options(options, kind)
    common: dict[str, Any] = {"name": options.name, "nonfinite": options.nonfinite, "need_ids": options.need_ids}
    if kind == "misa":
        return MisaSource(path, text=options.text, labels=options.labels, opened=opened, split=split, **common)
    return MmsaSource(
        path,
        text=options.text,
        others=dict(options.others),
        class_labels=options.class_labels,
        labels=options.labels,
        labelled=options.label_file is None,
        opened=opened,
        split=split,
        clip=clip,
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
        with_ids=options.label_file is not None,
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
    alone: bool = False
    """Whether it is the only file, whose name says nothing of splits."""

    def __call__(self, file: Path, *, checked: bool = False) -> MmsaSource | MisaSource:
        """Open a file."""
        opened, split, clip = Pickle(file), None, None
        labelled = self.options.label_file is None
        if is_clip(opened.value):
            clip = str(Path(self.names[file]).with_suffix(""))
            if labelled:
                raise ValueError(
                    f"{file} holds the features of one clip, as MMSA-FET's run_single writes them, and no label; give "
                    "the labels of all clips with --labels label.csv"
                )
        if not _splits_inside(opened, str(file)) and not (labelled and self.alone):
            split = self._split_of(file) if labelled else UNSPLIT
        return _open_pickle(file, self.options, opened=opened, split=split, clip=clip, checked=checked)

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
    for option in ("csd", "splits", "align", "lengths"):
        if kind != "csd" and getattr(options, option):
            raise ValueError(f"--{option} is for computational sequences (.csd) of the CMU SDK only; leave it out")
    if options.text in ("features", "tokens") and kind == "csd":
        raise ValueError(
            f"--text {options.text} is for pickles and tables; of computational sequences --csd says what the text is: "
            "leave it out"
        )
    if options.label_file and kind in ("misa", "csd"):
        raise ValueError(
            "--labels is joined with MMSA pickles, MMSA-FET's outputs and tables; lists of samples and computational "
            "sequences have labels of their own: leave it out"
        )
    if options.others and kind != "mmsa":
        raise ValueError("separate feature files can be given with MMSA pickles only")
    if options.class_labels and kind in ("misa", "csd"):
        raise ValueError(
            "--class-labels takes classification_labels of MMSA pickles or the column class of tables; leave it out"
        )
    if options.class_labels and options.labels.kind != "sentiments":
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
    pickles = [file for file in files if file.suffix.lower() in PICKLE_SUFFIXES]
    near = any(file in paths or file.parent in paths for file in pickles)
    return pickles if near or not any(map(table_format, files)) else []


def _holds_sequences(paths: Sequence[Path]) -> bool:
    """Whether the user's files are computational sequences, and none is a pickle or a table."""
    files = [file for file, _ in named_files(paths)]
    others = any(file.suffix.lower() in PICKLE_SUFFIXES or table_format(file) for file in files)
    return not others and bool(sequence_files(paths))


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
