"""Build a set of shards from a source: whole, or not at all, and the same bytes for any number of processes.

Tars and index are written in a staging directory and flushed; then the tars get their final names, which carry a
digest of their content, and the index is replaced last. A build that dies at any point leaves the former set as it
was; its leftovers go with the next build. The set just replaced stays on disk for whoever still reads it.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_shards.format.feature_statistics import describe_all, merge_all
from data_shards.format.index_file import INDEX_NAME
from data_shards.format.index_writer import IndexWriter
from data_shards.format.schema import MODALITIES, SPLITS, DatasetInfo, ShardInfo, Storage, check_kind, generation_of
from data_shards.format.tar import ShardRows, write_shard
from data_shards.labels import Labels
from data_shards.places import Where
from data_shards.storage.remote import RemoteOptions
from data_shards.writing.collect import Collector
from data_shards.writing.declared import Declared, Ids
from data_shards.writing.destination import Output, open_output
from data_shards.writing.process_pool import ordered
from data_shards.writing.source import Source

SAMPLES_PER_SHARD = 512
Progress = Callable[[int, int], None]


def build(
    source: Source,
    out: Where,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    storage: Storage = "float32",
    processes: int = 1,
    where: str = "",
    labels: Labels | None = None,
    ids: Ids = "keep",
    zeroed: dict[str, int] | None = None,
    ignored: dict[str, int] | None = None,
    copy_of: DatasetInfo | None = None,
    progress: Progress | None = None,
    remote: RemoteOptions | None = None,
) -> DatasetInfo:
    """Write all samples of `source` as shards to a directory or URL and make them its current generation.

    Args:
        source: where samples come from; read by all processes at once if there are several.
        storage: `float16` halves the size of features; `DatasetInfo.rounding` tells what it cost.
        where: what errors call the source; default: its name.
        labels: what the source's labels are; None: sentiments in [-3, 3], whatever they look like.
        ids: `number` gives each the place of its sample, so that all differ.
        zeroed: non-finite values that the source replaced by 0, for the record.
        ignored: what the source has and does not give, for the record.
        copy_of: the set whose samples these are; what its index says of how they were made is kept.
        progress: called with (samples, bytes) after each shard.

    Raises:
        ValueError: bad samples, ids that are there twice, labels of doubtful meaning, bad options, or another build at
            work in `out`. `out` is then as it was before.
    """
    check_kind(storage, Storage, "storage type")
    for what, value in (("samples per shard", samples_per_shard), ("processes", processes)):
        if value < 1:
            raise ValueError(f"{what}: {value} is too few; use at least 1")
    counts = {split: count for split in SPLITS if (count := source.counts().get(split)) is not None}
    if not counts:
        raise ValueError(f"{source.name} has no split; it needs at least one of {', '.join(SPLITS)}")
    check_kind(ids, Ids, "--ids")
    where = where or source.name
    collector = Collector(where, labels, numbered=ids == "number")
    if labels is not None or ids == "number":
        source = Declared(source, labels or Labels(), ids, where=where)
    record: dict[str, Any] = {"zeroed": zeroed or {}, "ignored": ignored or {}}
    if copy_of is not None:
        record = _provenance(copy_of, counts)
    plan = _Plan(source, counts, samples_per_shard, storage, where, record)
    with open_output(out, remote=remote) as output:
        index = IndexWriter(output.staging / INDEX_NAME)
        try:
            facts, shards = _write(plan, collector, output, index, processes, progress or (lambda samples, size: None))
            info = _describe(plan, collector.finish(), facts, shards)
            index.finish(info)
        finally:
            index.abort()
        output.publish()
    return info


def _provenance(info: DatasetInfo, counts: dict[str, int]) -> dict[str, Any]:
    """What an index says of how its samples were made, for those of some splits."""
    return {
        "zeroed": {place: count for place, count in info.zeroed.items() if place.partition("/")[0] in counts},
        "ignored": info.ignored,
        "label_scale": info.label_scale,
        "ids_numbered": info.ids_numbered,
        "rounding": info.rounding,
    }


class _Plan:
    """Which samples make up which shard: task `i` writes shard `i`."""

    def __init__(
        self,
        source: Source,
        counts: dict[str, int],
        samples_per_shard: int,
        storage: Storage,
        where: str,
        record: dict[str, Any],
    ) -> None:
        self.source, self.counts, self.where, self.record = source, counts, where, record
        self.samples_per_shard, self.storage = samples_per_shard, storage
        self.tasks: list[tuple[str, int, int, int, int]] = []
        """For each shard its split, number in the split, first and last + 1 sample, and first key."""
        key = 0
        for split, count in counts.items():
            if count == 0:
                raise ValueError(f"{source.name}: {split} is empty; leave the split out or fill it")
            for number, start in enumerate(range(0, count, samples_per_shard)):
                stop = min(start + samples_per_shard, count)
                self.tasks.append((split, number, start, stop, key + start))
            key += count

    def path(self, staging: Path, task: int) -> Path:
        """Where a shard is written."""
        return staging / f"shard-{task:06d}.tar"

    def write(self, staging: Path, task: int) -> ShardRows:
        """Write one shard."""
        split, _, start, stop, key = self.tasks[task]
        samples = self.source.read(split, start, stop)
        rows = write_shard(
            self.path(staging, task), samples, name=self.where, split=split, first=key, storage=self.storage
        )
        if len(rows.keys) != stop - start:
            raise ValueError(f"{self.source.name}: {split} gave {len(rows.keys)} samples instead of {stop - start}")
        return rows


def _write(
    plan: _Plan, collector: Collector, output: Output, index: IndexWriter, processes: int, progress: Progress
) -> tuple[ShardRows, list[ShardInfo]]:
    """Write all shards and index rows; what they have in common, and the shards."""
    facts: ShardRows | None = None
    shards: list[ShardInfo] = []
    with ordered(
        lambda task: plan.write(output.staging, task), len(plan.tasks), processes=processes, close=output.inherited
    ) as results:
        for task, rows in enumerate(results):
            split, number, start, stop, _ = plan.tasks[task]
            facts = _merge(facts, rows, plan.where)
            collector.take(rows, where=split, start=start)
            name = f"{split}-{number:06d}-{rows.sha256[:16]}.tar"
            size = stop - start
            shards.append(ShardInfo(name=name, split=split, samples=size, bytes=rows.bytes, sha256=rows.sha256))
            index.add(rows, shard=task)
            output.take(plan.path(output.staging, task), name)
            progress(size, rows.bytes)
    assert facts is not None
    return facts, shards


def _merge(facts: ShardRows | None, rows: ShardRows, name: str) -> ShardRows:
    """The shapes that all shards share, and the largest of what differs."""
    first, facts = facts is None, facts or ShardRows(rows.split, shapes=rows.shapes, tokens=rows.tokens)
    for modality, shape in rows.shapes.items():
        if (shape, rows.tokens) != (facts.shapes[modality], facts.tokens):
            raise ValueError(
                f"{name}: {modality} of {rows.split} samples has shape {shape}, of others {facts.shapes[modality]}; "
                "give all splits the same steps and features"
            )
    facts.join_classes(rows, first=first)
    merge_all(facts.moments, rows.moments)
    rounding = {m: max(error, facts.rounding.get(m, 0.0)) for m, error in rows.rounding.items()}
    return replace(facts, vocab_size=max(facts.vocab_size, rows.vocab_size), rounding=rounding)


def _describe(plan: _Plan, meaning: dict[str, Any], rows: ShardRows, shards: list[ShardInfo]) -> DatasetInfo:
    steps = 1 if rows.tokens else 0
    facts: dict[str, Any] = {
        "name": plan.source.name,
        "text_kind": "tokens" if rows.tokens else "features",
        "dims": {m: 0 if m == "text" and rows.tokens else rows.shapes[m][1] for m in MODALITIES},
        "lengths": {m: rows.shapes[m][steps if m == "text" else 0] for m in MODALITIES},
        "vocab_size": rows.vocab_size,
        "dtype": plan.storage,
        "samples_per_shard": plan.samples_per_shard,
        "counts": plan.counts,
    }
    generation = generation_of(facts=facts, shards=[(shard.split, shard.samples, shard.sha256) for shard in shards])
    return DatasetInfo(
        **{**facts, **meaning, "rounding": rows.rounding, **plan.record},
        classes=rows.num_classes,
        statistics=describe_all(rows.moments, facts["dims"]),
        shards=tuple(shards),
        generation=generation,
        builder=builder(),
    )


def builder() -> str:
    """The program and version that writes."""
    try:
        return f"dmd-cluster {version('dmd-cluster')}"
    except PackageNotFoundError:
        return "dmd-cluster, not installed"
