"""Build a set of shards from a source: completely or not at all, bitwise identical wherever its tasks run.

Tars and index are written in a staging directory and flushed; then the tars get their final names, which carry a
digest of their content, and the index is replaced last. A build that dies at any point leaves the previous set as it
was, and the next build removes its leftovers. The set that was just replaced stays on disk for those who still read it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data_shards.executor import Executor, InThisProcess
from data_shards.format.content_facts import ContentFacts
from data_shards.format.feature_statistics import describe_moments
from data_shards.format.index_file import INDEX_NAME
from data_shards.format.index_writer import IndexWriter
from data_shards.format.schema import SPLITS, DatasetInfo, ShardInfo, Storage, check_choice, content_digest
from data_shards.format.shard_rows import ShardRows
from data_shards.format.tar import write_shard
from data_shards.labels import Labels
from data_shards.places import PlaceLike
from data_shards.storage.remote import RemoteOptions
from data_shards.writing.declared_source import DeclaredSource, Ids
from data_shards.writing.destination import Destination, ShardWriter, WrittenShard, open_destination
from data_shards.writing.duplicate_ids import FileOf
from data_shards.writing.label_and_id_checks import LabelAndIdChecks
from data_shards.writing.source import Source

SAMPLES_PER_SHARD = 512
"""Where the caller gives no number."""
OnProgress = Callable[[int, int], None]


def build(
    source: Source,
    out: PlaceLike,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    storage: Storage = "float32",
    executor: Executor | None = None,
    memory: int = 0,
    where: str = "",
    file_of: FileOf | None = None,
    labels: Labels | None = None,
    ids: Ids = "keep",
    zeroed: dict[str, int] | None = None,
    ignored: dict[str, int] | None = None,
    tokenizer: dict[str, str] | None = None,
    extraction: dict[str, Any] | None = None,
    copy_of: DatasetInfo | None = None,
    progress: OnProgress | None = None,
    remote: RemoteOptions | None = None,
) -> DatasetInfo:
    """Write all samples of `source` as shards to a directory or URL and make them its current generation.

    Args:
        source: where samples come from; read by all tasks at once if there are several.
        storage: `float16` halves the size of features; `DatasetInfo.rounding` has the largest error.
        executor: where shards are written, one task each; None: in this process.
        memory: bytes that reading the source takes at most, for an executor that reserves memory.
        where: what errors call the source; default: its name.
        file_of: names the file of a sample for errors, where there are many.
        labels: what the source's labels are; None: sentiments in [-3, 3], without a check.
        ids: `number` appends split and number of its sample to each id, so that all differ.
        zeroed: non-finite values that the source replaced by 0, for the index.
        ignored: fields left out, for the index.
        tokenizer: `name` and `digest` of what made the text of transcripts, for the index.
        extraction: how the features were made of clips, for the index.
        copy_of: the set to copy provenance from; overrides `zeroed`, `ignored`, `tokenizer` and `extraction`.
        progress: called with (samples, bytes) after each shard.

    Raises:
        ValueError: bad samples, duplicate ids, ambiguous labels, bad options, or another build at work in `out`. `out`
            is then as it was before.
    """
    check_choice(storage, Storage, "storage type")
    check_choice(ids, Ids, "--ids")
    if samples_per_shard < 1:
        raise ValueError(f"samples per shard: {samples_per_shard} is too few; use at least 1")
    where = where or source.name
    checks = LabelAndIdChecks(where, labels, numbered=ids == "number", file_of=file_of)
    if labels is not None or ids == "number":
        source = DeclaredSource(source, labels or Labels(), ids, where=where)
    plan = _BuildPlan(source, samples_per_shard=samples_per_shard, storage=storage, where=where)
    origin: dict[str, Any] = {
        "zeroed": zeroed or {},
        "ignored": ignored or {},
        "tokenizer": tokenizer or {},
        "extraction": extraction or {},
    }
    if copy_of is not None:
        origin = _origin(copy_of, splits=plan.counts)
    with open_destination(out, remote=remote) as destination:
        index = IndexWriter(destination.staging / INDEX_NAME)
        try:
            written = _write_shards(
                plan,
                checks,
                destination,
                index,
                executor or InThisProcess(),
                memory=memory,
                progress=progress or _no_progress,
            )
            info = _describe(plan, written, {**checks.finish(), "rounding": written.facts.rounding, **origin})
            index.finish(info)
        finally:
            index.abort()
        destination.publish()
    return info


def _no_progress(samples: int, size: int) -> None:
    """Report nothing."""


def _origin(info: DatasetInfo, *, splits: Collection[str]) -> dict[str, Any]:
    """What an index says of how its samples were made, for those of some splits."""
    return {
        "zeroed": {place: count for place, count in info.zeroed.items() if place.partition("/")[0] in splits},
        "ignored": info.ignored,
        "label_scale": info.label_scale,
        "label_offset": info.label_offset,
        "class_names": info.class_names,
        "emotions": info.emotions,
        "protocol": info.protocol,
        "tokenizer": info.tokenizer,
        "extraction": info.extraction,
        "ids_numbered": info.ids_numbered,
        "rounding": info.rounding,
    }


@dataclass(frozen=True, kw_only=True)
class _Task:
    """The samples of one shard."""

    split: str
    number: int
    """Of the shard in its split."""
    start: int
    """The first sample, as its number in the split."""
    stop: int
    """The last sample + 1."""
    first_key: int
    """The first sample, as its number in the whole set."""

    @property
    def samples(self) -> int:
        """How many samples the shard gets."""
        return self.stop - self.start


class _BuildPlan:
    """Which samples make up which shard: task `i` writes shard `i`."""

    def __init__(self, source: Source, *, samples_per_shard: int, storage: Storage, where: str) -> None:
        """Plan a build. Raises ValueError for a source without a split, or with an empty one."""
        self.source = source
        self.samples_per_shard = samples_per_shard
        self.storage = storage
        self.where = where
        self.counts = {split: count for split in SPLITS if (count := source.counts().get(split)) is not None}
        if not self.counts:
            raise ValueError(f"{source.name} has no split; it needs at least one of {', '.join(SPLITS)}")
        self.tasks = [task for split in self.counts for task in self._tasks_of(split)]

    def _tasks_of(self, split: str) -> list[_Task]:
        count = self.counts[split]
        if count == 0:
            raise ValueError(f"{self.source.name}: {split} is empty; leave the split out or fill it")
        earlier = SPLITS[: SPLITS.index(split)]
        first_key = sum(self.counts.get(name, 0) for name in earlier)
        return [
            _Task(
                split=split,
                number=number,
                start=start,
                stop=min(start + self.samples_per_shard, count),
                first_key=first_key + start,
            )
            for number, start in enumerate(range(0, count, self.samples_per_shard))
        ]

    def write(self, file: Path, number: int) -> ShardRows:
        """Write one shard to a file that is not there."""
        task = self.tasks[number]
        rows = write_shard(
            file,
            self.source.read(task.split, task.start, task.stop),
            name=self.where,
            split=task.split,
            first=task.first_key,
            storage=self.storage,
        )
        found = len(rows.keys)
        if found != task.samples:
            raise ValueError(f"{self.source.name}: {task.split} gave {found} samples instead of {task.samples}")
        return rows


@dataclass(frozen=True)
class _WriteShard:
    """What each task runs; picklable where the source is."""

    plan: _BuildPlan
    writer: ShardWriter

    def __call__(self, number: int) -> WrittenShard:
        """Write shard `number`."""
        task = self.plan.tasks[number]
        return self.writer.write(lambda file: self.plan.write(file, number), f"{task.split}-{task.number:06d}")


@dataclass
class WrittenShards:
    """The shards that are in an index, and what all their samples have in common."""

    shards: list[ShardInfo] = field(default_factory=list)
    facts: ContentFacts = field(default_factory=ContentFacts)

    def content_digest(self, fields: dict[str, Any]) -> str:
        """The generation of the set with these shards; `fields` are its name, shapes and kinds."""
        return content_digest(
            facts=fields, shards=[(shard.split, shard.samples, shard.sha256) for shard in self.shards]
        )


def _write_shards(
    plan: _BuildPlan,
    checks: LabelAndIdChecks,
    destination: Destination,
    index: IndexWriter,
    executor: Executor,
    *,
    memory: int,
    progress: OnProgress,
) -> WrittenShards:
    """Write all shards and index rows."""
    written = WrittenShards()
    with executor.map_in_order(
        _WriteShard(plan, destination.writer(apart=executor.apart)),
        len(plan.tasks),
        memory=memory,
        close_in_workers=destination.lock_handles,
        settle=destination.settle,
    ) as results:
        for number, shard in enumerate(results):
            task, rows = plan.tasks[number], shard.rows
            destination.add_shard(shard)
            written.facts.require_same_shapes(rows.facts, split=task.split, name=plan.where)
            written.facts.merge(
                rows.facts, split=task.split, num_classes=rows.num_classes, num_emotions=rows.num_emotions
            )
            checks.add_shard(rows, where=task.split, start=task.start)
            written.shards.append(
                ShardInfo(name=shard.name, split=task.split, samples=task.samples, bytes=rows.bytes, sha256=rows.sha256)
            )
            index.add(rows, shard=number)
            progress(task.samples, rows.bytes)
    return written


def _describe(plan: _BuildPlan, written: WrittenShards, provenance: dict[str, Any]) -> DatasetInfo:
    """The facts of the set; `provenance` are those fields that are not part of its content."""
    content = {
        "name": plan.source.name,
        **written.facts.as_fields(),
        "dtype": plan.storage,
        "samples_per_shard": plan.samples_per_shard,
        "counts": plan.counts,
    }
    return describe_set(written, content, provenance)


def describe_set(written: WrittenShards, content: dict[str, Any], provenance: dict[str, Any]) -> DatasetInfo:
    """The facts of a set, for its index.

    Args:
        content: fields that are part of the content, so that its digest covers them.
        provenance: fields that say where samples come from and what their labels mean.

    Raises:
        ValueError: emotions or classes whose names are more or less than there are.
    """
    _check_names(written.facts, class_names=provenance["class_names"], emotions=provenance["emotions"])
    return DatasetInfo(
        **content,
        **provenance,
        classes=len(provenance["class_names"]) or written.facts.num_classes or 0,
        statistics=describe_moments(written.facts.moments, content["dims"]),
        shards=tuple(written.shards),
        generation=written.content_digest(content),
        builder=builder(),
    )


def _check_names(facts: ContentFacts, *, class_names: Sequence[str], emotions: Sequence[str]) -> None:
    """Raise ValueError where names of classes or emotions do not go with what samples have."""
    num_classes, num_emotions = facts.num_classes or 0, facts.num_emotions or 0
    if class_names and not num_classes:
        raise ValueError("--class-names names classes, but no sample has a class label; leave it out")
    if class_names and len(class_names) < num_classes:
        raise ValueError(f"--class-names has {len(class_names)} names, but there is a class {num_classes - 1}")
    if len(emotions) != num_emotions:
        raise ValueError(
            f"samples have {num_emotions} emotions, and there are {len(emotions)} names of them"
            f"{': ' if emotions else ''}{', '.join(emotions)}; name each one with --emotions NAME,NAME,..."
        )


def builder() -> str:
    """The program and version that writes."""
    try:
        return f"dmd-cluster {version('dmd-cluster')}"
    except PackageNotFoundError:
        return "dmd-cluster, not installed"
