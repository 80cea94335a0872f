"""The bytes of one shard: a plain ustar archive that depends on its samples alone, so builds are reproducible."""

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
from data_shards.format.content_facts import ContentFacts
from data_shards.format.feature_statistics import Moments
from data_shards.format.schema import MEMBERS, MODALITIES, Sample, canonical_json, check_sample
from data_shards.labels import LabelFacts

BLOCK = 512
_END_OF_ARCHIVE = bytes(2 * BLOCK)
KEY_DIGITS = 9


def key_name(number: int) -> str:
    """The key of sample `number` of the set: zero-padded, so that sorting names sorts samples."""
    return f"{number:0{KEY_DIGITS}d}"


def member_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member: regular file, mode 0644, owner 0, time 0."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    info.mtime = 0
    return info.tobuf(tarfile.USTAR_FORMAT)


def json_member(sample: Sample) -> bytes:
    """What a sample's `.json` holds."""
    lengths = dict(zip(MODALITIES, sample.lengths, strict=True))
    label = None if math.isnan(sample.label) else sample.label
    facts = {"id": sample.id, "label": label, "lengths": lengths, "raw_text": sample.raw_text}
    if sample.class_label is not None:
        facts["class"] = sample.class_label
    return canonical_json({**facts, "split": sample.split}).encode()


@dataclass
class ShardRows:
    """One shard's part of the index: lists with one entry per sample, and what is known of the whole shard."""

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
    facts: ContentFacts = field(default_factory=ContentFacts)
    ignored: dict[str, int] = field(default_factory=dict)
    """Members of an externally created tar that were not read -> how many there are."""

    def add_class_label(self, sample: Sample) -> None:
        """Note the class label of the next sample; either all samples of a set have one, or none."""
        if sample.class_label is not None:
            self.classes.append(sample.class_label)
        if self.classes and len(self.classes) != len(self.ids):
            raise ValueError(f"{sample.split} sample {sample.id!r} has no class label, but others have one")
        if math.isnan(sample.label) != math.isnan(self.labels[0]):
            raise ValueError(f"{sample.split} sample {sample.id!r}: some samples have a sentiment and others have none")

    @property
    def num_classes(self) -> int:
        """1 + the largest class label; 0 where samples have none."""
        return max(self.classes, default=-1) + 1

    def label_facts(self) -> LabelFacts:
        """What the labels are."""
        return LabelFacts.of(self.labels, self.classes)

    def add_statistics(self, modality: str, frames: NDArray[Any]) -> None:
        """Add the stored features of a sample to the statistics, which cover the train split alone."""
        if self.split == "train":
            self.facts.moments.setdefault(modality, Moments()).add(frames)


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
                rows.add_class_label(sample)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
            _append(file, rows, key_name(number), members)
            rows.facts.tokens = sample.text.dtype == np.int32
            if rows.facts.tokens:
                rows.facts.vocab_size = max(rows.facts.vocab_size, int(sample.text[0].max()) + 1)
        file.write(_END_OF_ARCHIVE)
        rows.bytes = file.position
        rows.sha256 = file.finish()
    return rows


def _check_shape(sample: Sample, rows: ShardRows) -> None:
    for modality in MODALITIES:
        shape = getattr(sample, modality).shape
        common = rows.facts.shapes.setdefault(modality, shape)
        if shape != common:
            raise ValueError(
                f"{sample.split} sample {sample.id!r}: {modality} has shape {shape}, others {common}; "
                "pad all samples to one length"
            )


def _members(sample: Sample, storage: str, rows: ShardRows) -> list[tuple[bytes, memoryview]]:
    """Header and body of each member; adds the rounding error of float16 and the statistics to `rows`."""
    bodies: list[tuple[bytes, memoryview]] = []
    for modality in MODALITIES:
        array: NDArray[Any] = getattr(sample, modality)
        dtype = np.dtype("<i4") if array.dtype == np.int32 else np.dtype("<f4" if storage == "float32" else "<f2")
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(array, dtype=dtype)
        if dtype == np.float16:
            error = float(np.abs(array - stored.astype(np.float32)).max())
            rows.facts.rounding[modality] = max(error, rows.facts.rounding.get(modality, 0.0))
            if not np.isfinite(error):
                raise ValueError(
                    f"{sample.split} sample {sample.id!r}: {modality} has values beyond float16 (65504); "
                    "scale the features or store float32"
                )
        if dtype != np.int32:
            rows.add_statistics(modality, stored)
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
