"""Which source fits a file or directory."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_shards.file_kinds import is_macos_metadata
from data_shards.format.schema import MODALITIES, check_choice
from data_shards.safe_pickle.load import Pickle
from data_shards.sources.misa import MisaSource
from data_shards.sources.mmsa import MmsaSource, Nonfinite, TextChoice
from data_shards.sources.splits import find_splits
from data_shards.sources.table import TableSource, table_format

Format = Literal["auto", "mmsa", "misa", "table"]


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to read features; an option that a format does not have is rejected."""

    name: str | None = None
    format: Format = "auto"
    text: TextChoice = "auto"
    nonfinite: Nonfinite = "refuse"
    vocab: str | None = None
    """A BERT vocabulary for pickles that hold words."""
    others: dict[str, str] = field(default_factory=dict)
    """Modality -> the MMSA pickle that it comes from instead."""
    class_labels: bool = False
    """Read the class labels of an MMSA pickle too."""
    classes: bool = False
    """The labels are class numbers; an MMSA pickle may have them in `classification_labels` only."""
    need_ids: bool = True
    """Whether a file must have ids."""


def open_source(path: str | Path, options: SourceOptions) -> MmsaSource | MisaSource | TableSource:
    """The source for a feature pickle, a directory of them, or a table; `ValueError` where none fits."""
    check_choice(options.format, Format, "--format")
    check_choice(options.text, TextChoice, "--text")
    check_choice(options.nonfinite, Nonfinite, "--nonfinite")
    if unknown := set(options.others) - set(MODALITIES):
        raise ValueError(f"{unknown.pop()!r} is no modality; use {', '.join(MODALITIES)}")
    kind, opened = _kind(path, options.format)
    _check_options(options, kind)
    common: dict[str, Any] = {"name": options.name, "nonfinite": options.nonfinite, "need_ids": options.need_ids}
    if kind == "misa":
        return MisaSource(path, vocab=options.vocab, opened=opened, **common)
    if kind == "table":
        return TableSource(path, text=options.text, **common)
    return MmsaSource(
        path,
        text=options.text,
        others=dict(options.others),
        class_labels=options.class_labels,
        classes=options.classes,
        opened=opened,
        **common,
    )


def _check_options(options: SourceOptions, kind: Format) -> None:
    """Reject options that the format of the file does not have."""
    if options.others and kind != "mmsa":
        raise ValueError("separate feature files can be given with MMSA pickles only")
    if options.class_labels and kind != "mmsa":
        raise ValueError("--class-labels takes classification_labels from MMSA pickles only; leave it out")
    if options.class_labels and options.classes:
        raise ValueError("--class-labels keeps class numbers beside sentiments, --classes takes them alone; give one")
    if options.vocab and kind != "misa":
        raise ValueError("--vocab is for MISA and MAG-BERT pickles, whose text is words; leave it out")


def _kind(given: str | Path, chosen: Format) -> tuple[Format, Pickle | None]:
    """The format of a file, and the pickle where one was read to find out."""
    path = Path(given)
    if not path.exists():
        hint = "features are read from files: download it and" if "://" in str(given) else "it is not there;"
        raise ValueError(f"{given}: {hint} give a feature pickle, a directory of them, or a table")
    if chosen != "auto":
        return chosen, None
    if path.is_dir():
        pickles = any(file.suffix.lower() == ".pkl" and not is_macos_metadata(file.name) for file in path.iterdir())
        return ("misa" if pickles else "table"), None
    if table_format(path) is not None:
        return "table", None
    opened = Pickle(path)
    splits = opened.value if isinstance(opened.value, dict) else {}
    parts = [splits[name] for name in find_splits(splits, str(path)).values()]
    return ("misa" if parts and isinstance(parts[0], (list, tuple)) else "mmsa"), opened
