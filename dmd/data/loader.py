"""Reads forward passes of training steps, and the batches of an evaluation, ahead of their use.

Readers are threads, not the processes of torch's DataLoader: reading is one system call per sample, which leaves
Python to others, and a batch that a thread read needs no copy through shared memory, whose fresh pages cost several
times the reading (`benchmarks/loader.py` has the figures). What is read, and in which order, does not depend on them.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Thread
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data_shards.reading.reader import ShardReader
from data_shards.reading.shuffle import epoch_order
from dmd.config import DataConfig
from dmd.data.plan import EMPTY, EpochPlan
from dmd.kernels.backend import default_device
from dmd.losses.sharing import WHOLE, Part

Key = TypeVar("Key")
PINNING = Lock()
"""Held by whoever pins a batch, or captures a CUDA graph: CUDA breaks a capture off when another thread pins."""
_STEPS_AT_ONCE = 32
"""Steps whose order is computed together: a call for many positions costs little more than one for few."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """G ghost batches of S samples, one after the other; padding repeats a sample and has mask 0.

    Where ranks share ghost batches, the features are those of this rank's part of each, P samples; P is S otherwise.
    """

    text: Tensor
    """[G*P, T, D] features or [G*P, 3, T] token ids."""
    audio: Tensor
    """[G*P, T, D]"""
    vision: Tensor
    """[G*P, T, D]"""
    labels: Tensor
    """[G, S], sentiments, or class numbers where the config asks for those that are stored."""
    mask: Tensor
    """[G, S], float32: 1 for a sample, 0 for padding."""
    rows: Tensor
    """[G, S], row of each sample in its split; -1 for padding. Stays on the CPU."""
    ghosts: tuple[int, ...]
    """Number of each ghost batch inside its step; EMPTY where there is none."""
    part: Part = WHOLE
    """What of each ghost batch the features are."""

    def own_rows(self) -> list[int]:
        """The rows whose features these are, without padding."""
        places = self.part.places(self.rows.shape[1])
        return [row for row in self.rows[:, places.start : places.stop].flatten().tolist() if row >= 0]

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device without waiting for the copy."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("text", "audio", "vision", "labels", "mask")
        }
        return Batch(**moved, rows=self.rows, ghosts=self.ghosts, part=self.part)

    def pin_memory(self) -> "Batch":
        """Pinned copy, for asynchronous transfers."""
        with PINNING:
            pinned = {n: getattr(self, n).pin_memory() for n in ("text", "audio", "vision", "labels", "mask")}
        return Batch(**pinned, rows=self.rows, ghosts=self.ghosts, part=self.part)


def _assemble(
    reader: ShardReader, split: str, rows: np.ndarray, ghosts: Sequence[int], *, part: Part = WHOLE, classes: bool
) -> Batch:
    """Read a part of rows [G, S] of a split (-1: padding, which repeats the first valid row)."""
    size = rows.shape[1]
    valid = rows >= 0
    filled = np.where(valid, rows, rows[valid][0] if valid.any() else 0)
    places = part.places(size)
    slots = np.arange(places.start, places.start + part.slots(size))
    own = filled[:, np.minimum(slots, places.stop - 1)]  # a spare slot repeats the last sample of the part
    arrays = reader.read(split, own.ravel())
    column = "class" if classes else "label"
    # Losses need the labels of a whole ghost batch, whoever reads the other features.
    labels = arrays[column] if part == WHOLE else reader.index.records(split, filled.ravel())[column]
    return Batch(
        text=torch.from_numpy(arrays["text"]),
        audio=torch.from_numpy(arrays["audio"]),
        vision=torch.from_numpy(arrays["vision"]),
        labels=torch.from_numpy(labels.astype(np.float32)).view(*rows.shape),
        mask=torch.from_numpy(valid.astype(np.float32)),
        rows=torch.from_numpy(rows),
        ghosts=tuple(ghosts),
        part=part,
    )


class _Training:
    """Keys (epoch, step, forward) -> the batch that this rank runs."""

    def __init__(self, reader: ShardReader, plan: EpochPlan, config: DataConfig, *, seed: int, rank: int) -> None:
        self.reader = reader
        self.plan = plan
        self.seed = seed
        self.window = config.window
        self.rank = rank
        self.part = plan.part(rank)
        self.classes = config.classes == "stored"
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, key: tuple[int, int, int]) -> Batch:
        epoch, step, forward = key
        plan = self.plan
        ghosts = plan.slots(step, forward, self.rank)
        rows = np.full((len(ghosts), plan.ghost_batch_size), -1, dtype=np.int64)
        for slot, ghost in enumerate(ghosts):
            places = plan.positions(step, ghost)
            if places:
                begin, order = self._order(epoch, step)
                rows[slot, : len(places)] = order[places.start - begin : places.stop - begin]
        return _assemble(self.reader, "train", rows, ghosts, part=self.part, classes=self.classes)

    def _order(self, epoch: int, step: int) -> tuple[int, np.ndarray]:
        """The first position, and the order from there on, of the steps around a step."""
        block = step // _STEPS_AT_ONCE
        order = self._orders.get((epoch, block))
        if order is None:
            order = self._block(epoch, block)
            self._orders = {(epoch, block): order}
            if self.reader.index.store.is_remote:
                Thread(target=self._fetch, args=(epoch, block + 1), name="fetcher", daemon=True).start()
        return block * self._per_block, order

    @property
    def _per_block(self) -> int:
        return _STEPS_AT_ONCE * self.plan.ghost_batch_size * self.plan.ghost_batches_per_step

    def _block(self, epoch: int, block: int) -> np.ndarray:
        """The order of a run of steps; empty beyond the epoch."""
        end = min((block + 1) * self._per_block, self.plan.num_samples)
        return epoch_order(
            np.arange(block * self._per_block, end),
            seed=self.seed,
            epoch=epoch,
            num_samples=self.plan.num_samples,
            shard_size=self.reader.index.shard_size("train"),
            window=self.window,
        )

    def _fetch(self, epoch: int, block: int) -> None:
        """Bring the shards of later steps here while earlier ones run."""
        with suppress(ValueError):  # what cannot be fetched now is reported when it is read
            self.reader.prefetch("train", self._block(epoch, block))


class _Evaluation:
    """Batch numbers -> consecutive samples of a split."""

    def __init__(self, reader: ShardReader, split: str, config: DataConfig, batch_size: int) -> None:
        self.reader = reader
        self.split = split
        self.batch_size = batch_size
        self.classes = config.classes == "stored"

    def __call__(self, number: int) -> Batch:
        begin = number * self.batch_size
        rows = np.arange(begin, begin + self.batch_size, dtype=np.int64)
        rows[rows >= self.reader.index.num_samples(self.split)] = -1
        return _assemble(self.reader, self.split, rows[None], [EMPTY], classes=self.classes)


class _StepKeys:
    """(epoch, step, forward) of the rest of an epoch, one at a time: an epoch may have millions."""

    def __init__(self, plan: EpochPlan, epoch: int, first_step: int) -> None:
        self.plan = plan
        self.epoch = epoch
        self.first_step = first_step

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for step in range(self.first_step, self.plan.num_steps):
            for forward in range(self.plan.forwards_per_step):
                yield self.epoch, step, forward


def reader_threads(config: DataConfig) -> int:
    """Threads that read ahead on this process's device."""
    if config.workers != "auto":
        return config.workers
    return 1 if default_device().type == "cuda" else 0


def _in_order(read: Callable[[Key], Batch], keys: Iterable[Key], workers: int) -> Iterator[Batch]:
    """`read(key)` for all keys in their order; with workers, a few of them ahead."""
    pin = default_device().type == "cuda"

    def fetch(key: Key) -> Batch:
        batch = read(key)
        return batch.pin_memory() if pin else batch

    if workers == 0:
        yield from map(fetch, keys)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader")
    ahead: deque[Future[Batch]] = deque()
    try:
        for key in keys:
            ahead.append(pool.submit(fetch, key))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def training_steps(
    reader: ShardReader, plan: EpochPlan, config: DataConfig, *, seed: int, rank: int, epoch: int, first_step: int = 0
) -> Iterator[list[Batch]]:
    """The forward passes of each step of an epoch, from `first_step` on, for one rank."""
    keys = _StepKeys(plan, epoch, first_step)
    batches = _in_order(_Training(reader, plan, config, seed=seed, rank=rank), keys, reader_threads(config))
    for _ in range(first_step, plan.num_steps):
        yield [next(batches) for _ in range(plan.forwards_per_step)]


def num_evaluation_batches(reader: ShardReader, split: str, batch_size: int) -> int:
    """Batches of a split, the last of which may be padded."""
    return -(-reader.index.num_samples(split) // batch_size)


def evaluation_batches(
    reader: ShardReader, split: str, config: DataConfig, *, batch_size: int, numbers: range | None = None
) -> Iterator[Batch]:
    """Batches of a split by their numbers (default: all); what one holds does not depend on who reads which."""
    read = _Evaluation(reader, split, config, batch_size)
    wanted = range(num_evaluation_batches(reader, split, batch_size)) if numbers is None else numbers
    return _in_order(read, wanted, reader_threads(config))
