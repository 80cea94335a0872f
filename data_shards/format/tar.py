"""The bytes of one shard: a plain ustar archive that depends on its samples alone, so builds are reproducible.

WebDataset's `TarWriter` writes it. Time, owner and mode of the members are fixed, and each member is a `write` of its
own, since one of a whole sample sorts the members by name.
"""

import math
import zlib
from collections.abc import Iterable
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

import numpy as np
from numpy.typing import NDArray
from webdataset import TarWriter

from data_shards.durable import BlockWriter
from data_shards.format import npy
from data_shards.format.schema import MEMBERS, MODALITIES, Sample, canonical_json, check_sample, member_suffix
from data_shards.format.shard_rows import ShardRows

_END_OF_ARCHIVE_BYTES = 2 * BLOCKSIZE
_MODE = 0o644
KEY_DIGITS = 9


def key_name(number: int) -> str:
    """The key of sample `number` of the set: zero-padded, so that sorting names sorts samples."""
    return f"{number:0{KEY_DIGITS}d}"


def json_member(sample: Sample) -> bytes:
    """What a sample's `.json` holds."""
    lengths = dict(zip(MODALITIES, sample.lengths, strict=True))
    label = None if math.isnan(sample.label) else sample.label
    facts = {"id": sample.id, "label": label, "lengths": lengths, "raw_text": sample.raw_text}
    if sample.class_label is not None:
        facts["class"] = sample.class_label
    if sample.emotions is not None:
        facts["emotions"] = sample.emotions.tolist()
    return canonical_json({**facts, "split": sample.split}).encode()


def write_shard(path: Path, samples: Iterable[Sample], *, name: str, split: str, first: int, storage: str) -> ShardRows:
    """Write samples to a new tar, flushed to disk. Keys count up from `first`; arrays must all have the same shape.

    Raises:
        ValueError: a sample that no shard may hold; `name` is what errors call the source.
    """
    rows = ShardRows(split)
    with open(path, "xb", buffering=0) as raw:
        file = BlockWriter(raw)
        with TarWriter(file, user="", group="", mode=_MODE, mtime=0, encoder=False) as writer:
            for number, sample in enumerate(samples, start=first):
                try:
                    check_sample(sample)
                    _check_shape(sample, rows)
                    members = _members(sample, storage, rows)
                    rows.ids.append(sample.id)
                    rows.lengths.append(sample.lengths)
                    rows.add_labels(sample)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
                _append(writer, rows, key_name(number), members)
                rows.facts.tokens = sample.text.dtype == np.int32
                if rows.facts.tokens:
                    rows.facts.vocab_size = max(rows.facts.vocab_size, int(sample.text[0].max()) + 1)
            # tarfile would fill the last record of 10,240 bytes, for tapes.
            file.limit = writer.tarstream.offset + _END_OF_ARCHIVE_BYTES
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


def _members(sample: Sample, storage: str, rows: ShardRows) -> list[bytes]:
    """What each member holds; adds the rounding error of float16 and the statistics to `rows`."""
    contents: list[bytes] = []
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
        contents.append(b"".join((npy.header(stored.shape, dtype), stored.data.cast("B"))))
    return [*contents, json_member(sample)]


def _append(writer: TarWriter, rows: ShardRows, key: str, members: list[bytes]) -> None:
    offsets = []
    for member, content in zip(MEMBERS, members, strict=True):
        writer.write({"__key__": key, member_suffix(member): content})
        padded = len(content) + -len(content) % BLOCKSIZE
        offsets.append(writer.tarstream.offset - padded)
    rows.keys.append(key)
    rows.offsets.append(offsets)
    rows.sizes.append([len(content) for content in members])
    rows.crc32.append([zlib.crc32(content) for content in members])
