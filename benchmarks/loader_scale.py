"""Indexes of any size without tars, and what starting, resuming and ordering cost: for `benchmarks/loader.py`."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.loader_sides import BATCH
from data_shards.format.index_file import INDEX_NAME, index_schema
from data_shards.format.index_writer import IndexWriter
from data_shards.format.schema import MEMBERS, MODALITIES, DatasetInfo, ShardInfo
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.reading.shuffle import epoch_order
from dmd.config import DataConfig
from dmd.data.loader import training_steps
from dmd.data.plan import EpochPlan

STEPS = 1000
STRIDE = 160_000
"""Bytes of a sample in the tars that these indexes describe."""


def write_index(root: Path, samples: int) -> None:
    """The index of MOSI-shaped samples in shards of 10,000, as `dmd shard` would write it; no tars."""
    root.mkdir(parents=True)
    size = min(10_000, samples)
    count = samples // size
    index = IndexWriter(root / INDEX_NAME)
    draw = np.random.default_rng(0)
    for shard in range(count):
        index.append(_rows(shard, size, draw))
    shards = tuple(
        ShardInfo(
            name=f"train-{i:06d}-{i:016x}.tar", split="train", samples=size, bytes=size * STRIDE, sha256=f"{i:064x}"
        )
        for i in range(count)
    )
    index.finish(
        DatasetInfo(
            name="scale",
            text_kind="features",
            dims={"text": 768, "audio": 5, "vision": 20},
            lengths=dict.fromkeys(MODALITIES, 50),
            vocab_size=0,
            counts={"train": samples},
            samples_per_shard=size,
            dtype="float32",
            shards=shards,
            generation="0" * 16,
            builder="benchmarks/loader.py",
        )
    )


def _rows(shard: int, size: int, draw: np.random.Generator) -> pa.Table:
    """Index rows of one shard."""
    numbers = pa.array(np.arange(shard * size, (shard + 1) * size))
    texts = pc.cast(numbers, pa.string())
    starts = np.arange(size, dtype=np.int64) * STRIDE
    columns: dict[str, pa.Array] = {
        "split": pa.repeat("train", size),
        "key": pc.utf8_lpad(texts, 9, "0"),
        "id": pc.binary_join_element_wise("video", texts, "$_$"),
        "shard": pa.repeat(pa.scalar(shard, pa.int32()), size),
    }
    for m, member in enumerate(MEMBERS):
        columns[f"{member}_offset"] = pa.array(starts + 512 + 40_000 * m)
        columns[f"{member}_size"] = pa.repeat(pa.scalar(30_000, pa.int64()), size)
        columns[f"{member}_crc32"] = pa.array(draw.integers(0, 2**32, size, dtype=np.uint32))
    columns["label"] = pa.array(draw.integers(-15, 16, size).astype(np.float32) / 5)
    for modality in MODALITIES:
        columns[f"{modality}_length"] = pa.array(draw.integers(1, 51, size).astype(np.int32))
    schema = index_schema(classes=False, emotions=0)
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def scale_facts(root: Path, samples: int) -> dict[str, tuple[float, str]]:
    """Of one rank of eight: time to the first batch's rows, time per step later on, and memory."""
    plan = EpochPlan(
        num_samples=samples, ghost_batch_size=BATCH, ghost_batches_per_step=10, ghost_batches_per_forward=1, num_ranks=8
    )
    before = _resident("VmRSS")
    size = (root / INDEX_NAME).stat().st_size if (root / INDEX_NAME).exists() else 0
    begin = time.perf_counter()
    index = ShardIndex.load(root) if size else None
    shard_size = index.shard_size("train") if index else 10_000
    moments = []
    for step in range(STEPS):
        places = plan.positions(step * max(1, plan.num_steps // STEPS), plan.slots(0, 0, 3)[0])
        order = epoch_order(
            np.arange(places.start, places.stop), seed=1, epoch=0, num_samples=samples, shard_size=shard_size, window=16
        )
        if index:
            index.records("train", order)
        if step == 0:
            moments.append((time.perf_counter() - begin, _resident("VmRSS") - before))
        if places.stop + 10 * BATCH > samples:
            break
    return {
        "index file": (round(size / 2**20, 1), "MiB"),
        "first batch": (round(1000 * moments[0][0], 1), "ms to its rows"),
        "memory at the first batch": (round(moments[0][1], 1), "MiB over imports"),
        "memory after steps all over the epoch": (round(_resident("VmHWM") - before, 1), "MiB over imports"),
        "a step's rows": (round(1e6 * (time.perf_counter() - begin - moments[0][0]) / max(1, step), 1), "us"),
    }


def locality() -> Iterator[tuple[int, int, int]]:
    """(window, ranks, distinct shards): what one rank touches in 1,000 steps of 160 of 10^8 samples in 10^4 shards."""
    for window in (1, 4, 16, 64):
        for ranks in (1, 8):
            mine = np.arange(0, 10, ranks)[:, None] * BATCH + np.arange(BATCH)
            positions = (np.arange(STEPS)[:, None, None] + 20_000) * 10 * BATCH + mine
            order = epoch_order(positions.ravel(), seed=1, epoch=0, num_samples=10**8, shard_size=10**4, window=window)
            yield window, ranks, len(np.unique(order // 10**4))


def first_batch(root: Path, step: int) -> None:
    """Open the shards and read the first batch from a step of an epoch on."""
    with ShardReader(root, check=False) as reader:
        plan = EpochPlan(
            num_samples=reader.index.num_samples("train"),
            ghost_batch_size=BATCH,
            ghost_batches_per_step=10,
            ghost_batches_per_forward=10,
            num_ranks=1,
        )
        next(training_steps(reader, plan, DataConfig(), seed=0, rank=0, epoch=3, first_step=step))


def _resident(name: str) -> float:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:")) / 1024
