"""A data set of a program's own: shards that are there, or that are written of a pickle or of arrays.

data = dmd.Dataset.from_arrays(
    train={"text": text, "audio": audio, "vision": vision, "labels": labels},    # [N, T, D], or lists of [T, D]
    valid={...},
)
data                       # counts, sizes, labels, place
dmd.train("demo", data, "runs/first")
"""

import argparse
import logging
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, get_args

import torch

from data_shards.commands import parse_shard, shard_parser, write_shards
from data_shards.format.schema import MODALITIES, DatasetInfo, Storage
from data_shards.label_options import format_counts
from data_shards.labels import DEFAULT_PROTOCOLS, Protocol
from data_shards.places import Place, PlaceLike, to_place
from data_shards.reading.index import ShardIndex
from data_shards.sources.arrays import HeldArrays
from data_shards.sources.mmsa import Nonfinite, TextChoice
from data_shards.writing.declared_source import Ids
from data_shards.writing.process_pool import ForkedProcesses
from dmd.extras import require

_log = logging.getLogger(__name__)
Split = Mapping[str, Any]
"""{field: one entry per sample}, see `Dataset.from_arrays`."""


class Dataset:
    """A set of shards: what `dmd.train` and `dmd.evaluate` read. Made by one of the `from_` methods."""

    def __init__(self, place: Place, *, temporary: bool = False) -> None:
        """Take shards that are there.

        Args:
            temporary: whether their directory is removed with this object, or at the end of the program.

        Raises:
            ValueError: no set of shards.
        """
        self.place = place.absolute()
        """Directory or URL of the shards, which stays the same when the working directory changes."""
        self.is_temporary = temporary
        self.info: DatasetInfo = ShardIndex.load(place).info
        """Counts, sizes and labels, as the index has them."""
        if temporary:
            weakref.finalize(self, _remove, str(place), os.getpid())

    @classmethod
    def from_shards(cls, place: PlaceLike) -> "Dataset":
        """Shards that `dmd shard` or a `Dataset` wrote.

        Args:
            place: a directory, or a URL such as s3://bucket/mosi.

        Raises:
            ValueError: no set of shards is there.
        """
        return cls(to_place(place))

    @classmethod
    def from_pickle(
        cls,
        path: str | Path | Sequence[str | Path],
        directory: str | Path | None = None,
        *,
        name: str | None = None,
        label_file: str | Path | None = None,
        label_column: str | None = None,
        label_range: tuple[float, float] | None = None,
        label_scale: float | None = None,
        classes: bool = False,
        binary: bool = False,
        class_labels: bool = False,
        class_names: Sequence[str] = (),
        emotions: Sequence[str] = (),
        protocol: Protocol | None = None,
        ids: Ids = "keep",
        text: TextChoice = "auto",
        nonfinite: Nonfinite = "refuse",
        dtype: Storage = "float32",
        samples_per_shard: int | None = None,
        processes: int = 1,
    ) -> "Dataset":
        """Shards of feature files, as `dmd shard` writes them: an MMSA, MulT, MISA or MAG-BERT pickle, a table, or
        several of one kind. Untrusted pickles run no code.

        Args:
            path: of the file, a directory of them, or several.
            directory: where the shards go; None: a temporary directory, which is removed with this object.
            label_file: take labels and splits from a csv file; `label_column` is its column of labels.
            label_range: the ends of the sentiments' own scale, such as (-1, 1) for CH-SIMS; `label_scale` is a factor.
            classes: labels are class numbers from 0; `binary`: they are 0 and 1.
            class_labels: keep class numbers beside the sentiments.
            class_names: names of the classes from 0 on.
            emotions: names of several labels per sample.
            protocol: which metrics the field reports on this set.
            ids: "number" makes ids unique.
            nonfinite: NaN and infinities are an error, or "zero".
            processes: that write, forked from this one.

        Raises:
            ValueError: in the words of `dmd shard`, whose options have the names of these arguments.
        """
        options = _shard_options(
            features=[str(part) for part in ([path] if isinstance(path, str | Path) else path)],
            labels=None if label_file is None else str(label_file),
            label_column=label_column,
            text=text,
            **_label_options(
                name=name,
                label_range=label_range,
                label_scale=label_scale,
                classes=classes,
                binary=binary,
                class_labels=class_labels,
                class_names=class_names,
                emotions=emotions,
                protocol=protocol,
                nonfinite=nonfinite,
                dtype=dtype,
                samples_per_shard=samples_per_shard,
            ),
            ids=ids,
        )
        return cls._written(options, directory, processes=processes)

    @classmethod
    def from_arrays(
        cls,
        *,
        train: Split | None = None,
        valid: Split | None = None,
        test: Split | None = None,
        directory: str | Path | None = None,
        name: str = "arrays",
        label_range: tuple[float, float] | None = None,
        label_scale: float | None = None,
        classes: bool = False,
        binary: bool = False,
        class_names: Sequence[str] = (),
        emotions: Sequence[str] = (),
        protocol: Protocol | None = None,
        nonfinite: Nonfinite = "refuse",
        dtype: Storage = "float32",
        samples_per_shard: int | None = None,
    ) -> "Dataset":
        """Shards of arrays in memory: numpy, torch on any device, or lists.

        Each split is a mapping of N samples:

        - `text`, `audio`, `vision`: one array [N, T, D], or N arrays [T, D] of any T, which are padded with zeros at
          their end; `text` of whole numbers [N, 3, T] are token ids, attention mask and token types;
        - `labels`: [N], sentiments in [-3, 3] (else say `label_range`), or class numbers with `classes`;
        - `classes` [N]: class numbers beside the sentiments; `emotions` [N, L], above 0: present;
        - `ids` [N] and `raw_text` [N], if there are any. Without ids samples are numbered.

        Args:
            directory: where the shards go; None: a temporary directory, which is removed with this object. A run can
                be continued or evaluated later where its shards stay: name a directory.
            label_range: the ends of the sentiments' own scale, such as (1, 5); `label_scale` is a factor.
            classes: labels are class numbers from 0, or names of `class_names`; `binary`: they are 0 and 1.
            class_names: names of the classes from 0 on.
            emotions: names of the emotions, in the order of their columns.
            protocol: which metrics the field reports on this set.
            nonfinite: NaN and infinities are an error, or "zero".

        Raises:
            ValueError: in the words of `dmd shard`, whose options have the names of these arguments.
        """
        given = {"train": train, "valid": valid, "test": test}
        held = HeldArrays({split: _on_cpu(fields) for split, fields in given.items() if fields is not None}, name)
        options = _shard_options(
            features=[name],
            **_label_options(
                name=name,
                label_range=label_range,
                label_scale=label_scale,
                classes=classes,
                binary=binary,
                class_labels=held.have_classes and not (classes or binary),
                class_names=class_names,
                emotions=emotions,
                protocol=protocol,
                nonfinite=nonfinite,
                dtype=dtype,
                samples_per_shard=samples_per_shard,
            ),
            ids="keep" if held.have_ids else "number",
        )
        return cls._written(options, directory, arrays=held)

    @classmethod
    def _written(
        cls,
        options: argparse.Namespace,
        directory: str | Path | None,
        *,
        arrays: HeldArrays | None = None,
        processes: int = 1,
    ) -> "Dataset":
        """Write shards; what is left out or changed is a warning in the log."""
        require("webdataset")
        place = tempfile.mkdtemp(prefix="dmd-shards-") if directory is None else str(directory)
        options.shards = to_place(place)
        try:
            write_shards(
                options,
                ForkedProcesses(processes),
                arrays=arrays,
                say=lambda line: _log.warning("warning: %s: %s", options.name or options.features[0], line),
            )
            return cls(options.shards, temporary=directory is None)
        except BaseException:
            if directory is None:
                _remove(place, os.getpid())
            raise

    def checked_place(self) -> Place:
        """The place, which still holds the shards that this object describes.

        Raises:
            ValueError: other shards took their place.
        """
        here = ShardIndex.load(self.place).info
        if here.generation != self.info.generation:
            raise ValueError(
                f"{self.place} held {self.info.name!r} (generation {self.info.generation}) when this Dataset was made, "
                f"and holds {here.name!r} (generation {here.generation}); to use that, take "
                "dmd.Dataset.from_shards of it; otherwise write the first set again, to another directory"
            )
        return self.place

    @property
    def task(self) -> str:
        """What a model learns of it: regression, classes or multilabel."""
        return self.info.task

    def __repr__(self) -> str:
        info = self.info
        counts = ", ".join(f"{split} {count}" for split, count in info.counts.items())
        lines = [f"Dataset {info.name!r}: {counts}; {info.task} ({info.protocol or DEFAULT_PROTOCOLS[info.task]})"]
        for modality in MODALITIES:
            what = "token ids" if modality == "text" and info.text_kind == "tokens" else "features"
            lines.append(f"  {modality:<6} {what} {list(info.shape(modality))}")
        for split in filter(info.labels.__contains__, info.counts):
            about = info.labels[split].describe(
                class_names=info.class_names, emotions=info.emotions, scale=info.label_scale, offset=info.label_offset
            )
            lines.append(f"  labels of {split}: {about}")
        lines += [f"  ignored: {format_counts(info.ignored)}"] if info.ignored else []
        lines += [f"  stored as 0, not finite: {format_counts(info.zeroed)}"] if info.zeroed else []
        temporary = ", removed with this object" if self.is_temporary else ""
        return "\n".join([*lines, f"  at {self.place}{temporary}"])


def _shard_options(**given: Any) -> argparse.Namespace:
    """The options of `dmd shard`, some of which are given; None: as the command has it."""
    options = parse_shard(shard_parser(), ["features", "shards"])
    assert vars(options).keys() >= given.keys(), "an option of that name"
    for option, value in given.items():
        if value is not None:
            setattr(options, option, value)
    return options


def _label_options(*, class_names: Sequence[str], emotions: Sequence[str], **given: Any) -> dict[str, Any]:
    """Options of a source's labels, as `argparse` gives them.

    Raises:
        ValueError: options that exclude each other, which `argparse` would reject.
    """
    if given["classes"] and given["binary"]:
        raise ValueError("classes and binary say different things of the labels; give one of them")
    for option, names in (("class_names", class_names), ("emotions", emotions)):
        if isinstance(names, str):
            raise ValueError(f"{option} is the text {names!r}; give a list of names")
        for name in names:
            if not isinstance(name, str) or "," in name:
                raise ValueError(f"{option} has {name!r}; give names that are texts without a comma")
    span = given["label_range"]
    if span is not None and (not isinstance(span, Sized) or isinstance(span, str) or len(span) != 2):
        raise ValueError(f"label_range is {span!r}; give the lowest and the highest label, such as (1, 5)")
    protocol, protocols = given["protocol"], get_args(Protocol)
    if protocol is not None and protocol not in protocols:
        raise ValueError(f"protocol is {protocol!r}; give one of {', '.join(protocols)}")
    return {**given, "class_names": ",".join(class_names) or None, "emotions": ",".join(emotions) or None}


def _on_cpu(value: Any) -> Any:
    """A value whose tensors, in mappings and lists too, are arrays."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, Mapping):
        return {name: _on_cpu(part) for name, part in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(part, torch.Tensor) for part in value):
        return [_on_cpu(part) for part in value]
    return value


def _remove(place: str, process: int) -> None:
    """Remove a temporary directory, unless this is a fork of the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(place, ignore_errors=True)
