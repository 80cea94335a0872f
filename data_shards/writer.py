"""Build a set of shards from a source: whole, or not at all.

Tars and index are written in a staging directory and flushed; then the tars get their final names, which carry the
generation, and the index is replaced last. A build that dies at any point leaves the former generation as it was;
its leftovers go with the next build. The generation just replaced stays on disk for whoever still reads it.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_shards.durable import exclusive, sync_directory
from data_shards.index import ShardIndex
from data_shards.index_format import INDEX_NAME, IndexWriter
from data_shards.schema import MODALITIES, SPLITS, DatasetInfo, ShardInfo, Storage, check_kind, generation_of
from data_shards.sources.base import Source
from data_shards.tar import ShardRows, write_shard

SAMPLES_PER_SHARD = 512
_LOCK, _STAGING = ".building.lock", ".staging-"
_SHARD_NAME = re.compile(r"(train|valid|test)-([0-9a-f]{16})-\d{6}\.tar")


def build(
    source: Source, out: str | Path, *, samples_per_shard: int = SAMPLES_PER_SHARD, storage: Storage = "float32"
) -> DatasetInfo:
    """Write all samples of `source` as shards into directory `out` and make them its current generation.

    Raises:
        ValueError: bad samples, bad options, or another build at work in `out`. `out` is then as it was before.
    """
    check_kind(storage, Storage, "storage type")
    if samples_per_shard < 1:
        raise ValueError(f"samples per shard: {samples_per_shard} is too few; use at least 1")
    root = Path(out)
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} is a file; give a directory for the shards")
    created = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(root / _LOCK, f"another build is writing to {root}"):
            return _build(source, root, samples_per_shard, storage)
    finally:
        if created and not any(root.iterdir()):
            root.rmdir()


def _build(source: Source, root: Path, samples_per_shard: int, storage: Storage) -> DatasetInfo:
    for leftover in root.glob(f"{_STAGING}*"):
        shutil.rmtree(leftover)
    staging = root / f"{_STAGING}{uuid.uuid4().hex[:8]}"
    staging.mkdir()
    try:
        index = IndexWriter(staging / INDEX_NAME)
        try:
            info = _write(source, staging, index, samples_per_shard, storage)
            index.finish(info)
        finally:
            index.abort()
        former = _generation(root)
        _publish(staging, root, info)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _retire(root, keep={info.generation, former})
    return info


def _write(source: Source, staging: Path, index: IndexWriter, samples_per_shard: int, storage: Storage) -> DatasetInfo:
    """Write all shards and index rows; the set's facts follow from them."""
    counts = {split: count for split in SPLITS if (count := source.counts().get(split)) is not None}
    if not counts:
        raise ValueError(f"{source.name} has no split; it needs at least one of {', '.join(SPLITS)}")
    shards: list[ShardRows] = []
    for number, rows in enumerate(_shards(source, counts, staging, samples_per_shard, storage)):
        if shards and (rows.shapes, rows.tokens) != (shards[0].shapes, shards[0].tokens):
            raise ValueError(f"{rows.split} samples have shapes {rows.shapes}, the others {shards[0].shapes}")
        index.add(rows, shard=number)
        rows.keys, rows.ids, rows.offsets, rows.sizes, rows.crc32, rows.labels, rows.lengths = (
            [],
            [],
            [],
            [],
            [],
            [],
            [],
        )
        shards.append(rows)
    return _describe(source.name, counts, shards, samples_per_shard, storage)


def _shards(
    source: Source, counts: dict[str, int], staging: Path, samples_per_shard: int, storage: Storage
) -> Iterator[ShardRows]:
    first = 0
    for split, count in counts.items():
        if count == 0:
            raise ValueError(f"{source.name}: {split} is empty; leave the split out or fill it")
        for number, start in enumerate(range(0, count, samples_per_shard)):
            samples = source.read(split, start, min(start + samples_per_shard, count))
            path = staging / f"{split}-{number:06d}.tar"
            yield write_shard(path, samples, split=split, first=first + start, storage=storage)
        first += count


def _describe(
    name: str, counts: dict[str, int], shards: list[ShardRows], samples_per_shard: int, storage: Storage
) -> DatasetInfo:
    shapes, tokens = shards[0].shapes, shards[0].tokens
    dims = {m: 0 if m == "text" and tokens else shapes[m][1] for m in MODALITIES}
    lengths = {m: shapes[m][1 if m == "text" and tokens else 0] for m in MODALITIES}
    facts: dict[str, Any] = {
        "name": name,
        "text_kind": "tokens" if tokens else "features",
        "dims": dims,
        "lengths": lengths,
        "vocab_size": max(rows.vocab_size for rows in shards),
        "dtype": storage,
        "samples_per_shard": samples_per_shard,
        "counts": counts,
    }
    sizes = _shard_sizes(counts, samples_per_shard)
    digests = [(rows.split, samples, rows.sha256) for rows, samples in zip(shards, sizes, strict=True)]
    generation = generation_of(facts=facts, shards=digests)
    numbers = dict.fromkeys(counts, 0)
    named = []
    for rows, samples in zip(shards, sizes, strict=True):
        shard = f"{rows.split}-{generation}-{numbers[rows.split]:06d}.tar"
        named.append(ShardInfo(name=shard, split=rows.split, samples=samples, bytes=rows.bytes, sha256=rows.sha256))
        numbers[rows.split] += 1
    return DatasetInfo(**facts, shards=tuple(named), generation=generation, builder=_builder())


def _shard_sizes(counts: dict[str, int], samples_per_shard: int) -> list[int]:
    starts = [(count, start) for count in counts.values() for start in range(0, count, samples_per_shard)]
    return [min(samples_per_shard, count - start) for count, start in starts]


def _builder() -> str:
    try:
        return f"dmd-cluster {version('dmd-cluster')}"
    except PackageNotFoundError:
        return "dmd-cluster, not installed"


def _publish(staging: Path, root: Path, info: DatasetInfo) -> None:
    sync_directory(staging)
    for shard in info.shards:
        os.replace(staging / shard.name.replace(f"-{info.generation}-", "-"), root / shard.name)
    sync_directory(root)
    os.replace(staging / INDEX_NAME, root / INDEX_NAME)
    sync_directory(root)


def _generation(root: Path) -> str | None:
    """The generation that `root` offers now; None where it offers none that can be read."""
    try:
        return ShardIndex.load(root).info.generation
    except ValueError:
        return None


def _retire(root: Path, *, keep: set[str | None]) -> None:
    """Remove shards of generations that are neither the current one nor the one before."""
    for path in root.iterdir():
        match = _SHARD_NAME.fullmatch(path.name)
        if match and match[2] not in keep:
            path.unlink()
