"""The bytes of one shard: a plain ustar archive whose every byte follows from its samples."""

import math
import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.durable import BlockWriter
from data_shards.format import npy
from data_shards.format.feature_statistics import Moments
from data_shards.format.schema import MEMBERS, MODALITIES, Sample, canonical, check_sample
from data_shards.labels import LabelFacts

BLOCK = 512
_END = bytes(2 * BLOCK)
KEY_DIGITS = 9


def key_name(number: int) -> str:
    """The key of sample `number` of the set: zero-padded, so that sorting names sorts samples."""
    return f"{number:0{KEY_DIGITS}d}"


def member_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member: regular file, mode 0644, owner 0, time 0."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT)


def json_member(sample: Sample) -> bytes:
    """What a sample's `.json` holds."""
    lengths = dict(zip(MODALITIES, sample.lengths, strict=True))
    label = None if math.isnan(sample.label) else sample.label
    facts = {"id": sample.id, "label": label, "lengths": lengths, "raw_text": sample.raw_text}
    if sample.class_label is not None:
        facts["class"] = sample.class_label
    return canonical({**facts, "split": sample.split}).encode()


@dataclass
class ShardRows:
    """One shard's part of the index, a list entry per sample; and what the whole shard is."""

    split: str
    keys: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    offsets: list[list[int]] = field(default_factory=list)
    """Where each member's content starts in the tar, in the order of MEMBERS."""
    sizes: list[list[int]] = field(default_factory=list)
    crc32: list[list[int]] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    lengths: list[tuple[int, int, int]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    """Class labels; empty where the set has none."""
    bytes: int = 0
    sha256: str = ""
    vocab_size: int = 0
    num_classes: int = 0
    """1 + the largest class label."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Every sample's array shape per modality."""
    tokens: bool = False
    """Whether text is tokens."""
    rounding: dict[str, float] = field(default_factory=dict)
    """Per modality the largest difference between a value and its float16; empty where nothing was rounded."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Members of a tar of another program that were not taken -> how many there are."""
    moments: dict[str, Moments] = field(default_factory=dict)
    """Per modality of features, what a shard of the train split says about their distribution."""

    def take_class(self, sample: Sample) -> None:
        """Note the class label of the next sample; either all samples of a set have one, or none."""
        if sample.class_label is not None:
            self.classes.append(sample.class_label)
            self.num_classes = max(self.num_classes, sample.class_label + 1)
        if self.classes and len(self.classes) != len(self.ids):
            raise ValueError(f"{sample.split} sample {sample.id!r} has no class label, but others have one")
        if math.isnan(sample.label) != math.isnan(self.labels[0]):
            raise ValueError(f"{sample.split} sample {sample.id!r}: some samples have a sentiment and others have none")

    def label_facts(self) -> LabelFacts:
        """What the labels are."""
        return LabelFacts.of(self.labels, self.classes)

    def join_classes(self, other: "ShardRows", *, first: bool) -> None:
        """Take in the number of classes of a shard; `first`: this one knows of none yet."""
        if not first and (self.num_classes == 0) != (other.num_classes == 0):
            raise ValueError(f"some samples of {other.split} have a class label and others have none; give all one")
        self.num_classes = max(self.num_classes, other.num_classes)

    def observe(self, modality: str, frames: NDArray[Any]) -> None:
        """Take the stored features of a sample into the statistics, if it is one to train on."""
        if self.split == "train":
            self.moments.setdefault(modality, Moments()).add(frames)


def write_shard(path: Path, samples: Iterable[Sample], *, name: str, split: str, first: int, storage: str) -> ShardRows:
    """Write samples to a new tar, flushed to disk. Keys count up from `first`; arrays must all have the same shape.

    Raises:
        ValueError: a sample that no shard may hold; `name` is what errors call the source.
    """
    rows = ShardRows(split)
    with open(path, "xb", buffering=0) as raw:
        file = BlockWriter(raw)
        for number, sample in enumerate(samples, start=first):
            try:
                check_sample(sample)
                _check_shape(sample, rows)
                members = _members(sample, storage, rows)
                rows.ids.append(sample.id)
                rows.labels.append(sample.label)
                rows.lengths.append(sample.lengths)
                rows.take_class(sample)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            _append(file, rows, key_name(number), members)
            rows.tokens = sample.text.dtype == np.int32
            if rows.tokens:
                rows.vocab_size = max(rows.vocab_size, int(sample.text[0].max()) + 1)
        file.write(_END)
        rows.bytes, rows.sha256 = file.position, file.finish()
    return rows


def _check_shape(sample: Sample, rows: ShardRows) -> None:
    for modality in MODALITIES:
        shape = getattr(sample, modality).shape
        if rows.shapes.setdefault(modality, shape) != shape:
            raise ValueError(
                f"{sample.split} sample {sample.id!r}: {modality} has shape {shape}, others {rows.shapes[modality]}; "
                "pad all samples to one length"
            )


def _members(sample: Sample, storage: str, rows: ShardRows) -> list[tuple[bytes, memoryview]]:
    """For each member a header and a body; `rows` learns what float16 costs, and the statistics."""
    bodies: list[tuple[bytes, memoryview]] = []
    for modality in MODALITIES:
        array: NDArray[Any] = getattr(sample, modality)
        dtype = np.dtype("<i4") if array.dtype == np.int32 else np.dtype("<f4" if storage == "float32" else "<f2")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(array, dtype=dtype)
        if dtype == np.float16:
            error = float(np.abs(array - stored.astype(np.float32)).max())
            rows.rounding[modality] = max(error, rows.rounding.get(modality, 0.0))
            if not np.isfinite(error):
                raise ValueError(
                    f"{sample.split} sample {sample.id!r}: {modality} has values beyond float16 (65504); "
                    "scale the features or store float32"
                )
        if dtype != np.int32:
            rows.observe(modality, stored)
        bodies.append((npy.header(stored.shape, dtype), stored.data.cast("B")))
    return [*bodies, (b"", memoryview(json_member(sample)))]


def _append(file: BlockWriter, rows: ShardRows, key: str, members: list[tuple[bytes, memoryview]]) -> None:
    offsets, sizes, checksums = [], [], []
    for extension, (head, content) in zip(MEMBERS, members, strict=True):
        size = len(head) + len(content)
        suffix = "json" if extension == "json" else f"{extension}.npy"
        parts = (member_header(f"{key}.{suffix}", size), head, content, bytes(-size % BLOCK))
        offsets.append(file.position + BLOCK)
        sizes.append(size)
        checksums.append(zlib.crc32(content, zlib.crc32(head)))
        for part in parts:
            file.write(part)
    rows.keys.append(key)
    rows.offsets.append(offsets)
    rows.sizes.append(sizes)
    rows.crc32.append(checksums)
