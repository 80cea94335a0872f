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
from functools import cached_property
from threading import Lock, Thread
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.reading.reader import ShardReader
from data_shards.reading.shuffle import epoch_order, epoch_windows
from data_shards.reading.stream import ANYWHERE, Request, SampleStream
from dmd.config import DataConfig
from dmd.data.plan import EMPTY, EpochPlan
from dmd.kernels.backend import default_device
from dmd.losses.sharing import WHOLE, Part

Key = TypeVar("Key")
PINNING = Lock()
"""Held by whoever pins a batch, or captures a CUDA graph: CUDA breaks a capture off when another thread pins."""
_STEPS_AT_ONCE = 32
"""Steps whose order is computed together: a call for many positions costs little more than one for few."""
LABELS = {"sentiment": "label", "stored": "class", "emotions": "emotions"}
"""What a reader calls the labels of `data.classes`."""
_NO_WINDOWS = np.empty(0, dtype=np.int64)


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
    """[G, S], sentiments, or class numbers where the config asks for those that are stored; [G, S, L], emotions as 0
    and 1, where it asks for those."""
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

    def twice(self) -> "Batch":
        """The same ghost batches, and behind them again."""
        tensors = {name: getattr(self, name) for name in ("text", "audio", "vision", "labels", "mask", "rows")}
        doubled = {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
        return Batch(**doubled, ghosts=2 * self.ghosts, part=self.part)

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


@dataclass(frozen=True)
class _Forward:
    """A batch before its samples are read."""

    rows: NDArray[np.int64]
    """[G, S], -1 for padding."""
    windows: NDArray[np.int64] | None
    """[G, S], the window of shards of each row in the order that is read; only a stream asks for it."""
    ghosts: Sequence[int]
    part: Part = WHOLE

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """[G, S], whether there is a sample."""
        return self.rows >= 0

    @cached_property
    def filled(self) -> NDArray[np.int64]:
        """[G, S], where padding repeats the first sample."""
        return self._fill(self.rows, 0)

    def positions(self) -> NDArray[np.int64]:
        """The rows of this rank's part, which are read."""
        return self._own(self.filled)

    def request(self) -> Request:
        """The same for a stream."""
        assert self.windows is not None
        return Request(self.positions(), self._own(self._fill(self.windows, ANYWHERE)))

    def _fill(self, values: NDArray[np.int64], otherwise: int) -> NDArray[np.int64]:
        """Values of rows, with that of the first sample for padding; `otherwise` where there is none."""
        return np.where(self.valid, values, values[self.valid][0] if self.valid.any() else otherwise)

    def _own(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of this rank's part, in one row; a spare slot repeats the last sample of the part."""
        size = self.rows.shape[1]
        places = self.part.places(size)
        slots = np.arange(places.start, places.start + self.part.slots(size))
        return values[:, np.minimum(slots, places.stop - 1)].ravel()


def _to_batch(forward: _Forward, arrays: dict[str, NDArray[Any]], labels: NDArray[Any]) -> Batch:
    """A batch of the arrays that its request gave, and the labels [G * S, ...] of its whole ghost batches."""
    return Batch(
        text=torch.from_numpy(arrays["text"]),
        audio=torch.from_numpy(arrays["audio"]),
        vision=torch.from_numpy(arrays["vision"]),
        labels=torch.from_numpy(labels.astype(np.float32)).view(*forward.rows.shape, *labels.shape[1:]),
        mask=torch.from_numpy(forward.valid.astype(np.float32)),
        rows=torch.from_numpy(forward.rows),
        ghosts=tuple(forward.ghosts),
        part=forward.part,
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
        self.is_stream = config.reader == "stream"
        self.fetches = reader.index.store.is_remote and not self.is_stream
        self._orders: dict[tuple[int, int], _Order] = {}

    def __call__(self, key: tuple[int, int, int]) -> _Forward:
        epoch, step, forward = key
        plan = self.plan
        ghosts = plan.slots(step, forward, self.rank)
        rows = np.full((len(ghosts), plan.ghost_batch_size), -1, dtype=np.int64)
        windows = np.full_like(rows, ANYWHERE) if self.is_stream else None
        for slot, ghost in enumerate(ghosts):
            places = plan.positions(step, ghost)
            if places:
                order = self._order(epoch, step)
                chosen = slice(places.start - order.begin, places.stop - order.begin)
                rows[slot, : len(places)] = order.rows[chosen]
                if windows is not None:
                    windows[slot, : len(places)] = order.windows[chosen]
        return _Forward(rows, windows, ghosts, self.part)

    def _order(self, epoch: int, step: int) -> "_Order":
        """The order of the steps around a step."""
        block = step // _STEPS_AT_ONCE
        order = self._orders.get((epoch, block))
        if order is None:
            order = self._block(epoch, block)
            self._orders = {(epoch, block): order}
            if self.fetches:
                Thread(target=self._fetch, args=(epoch, block + 1), name="fetcher", daemon=True).start()
        return order

    @property
    def _per_block(self) -> int:
        return _STEPS_AT_ONCE * self.plan.ghost_batch_size * self.plan.ghost_batches_per_step

    def _block(self, epoch: int, block: int) -> "_Order":
        """The order of a run of steps; empty beyond the epoch."""
        begin = block * self._per_block
        positions = np.arange(begin, min(begin + self._per_block, self.plan.num_samples))
        order = {
            "seed": self.seed,
            "epoch": epoch,
            "num_samples": self.plan.num_samples,
            "shard_size": self.reader.index.shard_size("train"),
            "window": self.window,
        }
        windows = epoch_windows(positions, **order) if self.is_stream else _NO_WINDOWS
        return _Order(begin, epoch_order(positions, **order), windows)

    def _fetch(self, epoch: int, block: int) -> None:
        """Bring the shards of later steps here while earlier ones run."""
        with suppress(ValueError):  # what cannot be fetched now is reported when it is read
            self.reader.prefetch("train", self._block(epoch, block).rows)


class _Order(NamedTuple):
    """A part of an epoch's order."""

    begin: int
    """Its first position."""
    rows: NDArray[np.int64]
    windows: NDArray[np.int64]
    """The window of shards of each row; empty where nothing is streamed."""


class _Evaluation:
    """Batch numbers -> consecutive samples of a split, whose windows are single shards."""

    def __init__(self, reader: ShardReader, split: str, batch_size: int) -> None:
        self.batch_size = batch_size
        self.num_samples = reader.index.num_samples(split)
        self.shard_size = reader.index.shard_size(split)

    def __call__(self, number: int) -> _Forward:
        begin = number * self.batch_size
        rows = np.arange(begin, begin + self.batch_size, dtype=np.int64)[None]
        rows[rows >= self.num_samples] = -1
        return _Forward(rows, rows // self.shard_size, [EMPTY])


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
    is_stream = config.reader == "stream"
    if config.workers == "auto":
        return 1 if is_stream or default_device().type == "cuda" else 0
    return min(config.workers, 1) if is_stream else config.workers


def _in_order(
    read: Callable[[Key], Batch], keys: Iterable[Key], workers: int, *, stop: Callable[[], None] | None = None
) -> Iterator[Batch]:
    """`read(key)` for all keys in their order; with workers, a few of them ahead. `stop` ends a read that still runs
    when no more batches are wanted."""
    pin = default_device().type == "cuda"

    def fetch(key: Key) -> Batch:
        batch = read(key)
        return batch.pin_memory() if pin else batch

    pool = ThreadPoolExecutor(workers, thread_name_prefix="reader") if workers else None
    ahead: deque[Future[Batch]] = deque()
    try:
        if pool is None:
            yield from map(fetch, keys)
            return
        for key in keys:
            ahead.append(pool.submit(fetch, key))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        if stop is not None:
            stop()
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _batches(
    reader: ShardReader, split: str, forward_of: Callable[[Key], _Forward], keys: Iterable[Key], config: DataConfig
) -> Iterator[Batch]:
    """The batches of all keys, in their order; a stream goes through the keys a second time, ahead."""

    def finish(forward: _Forward, arrays: dict[str, NDArray[Any]]) -> Batch:
        column = LABELS[config.classes]
        # Losses need the labels of a whole ghost batch, whoever reads the other features.
        is_whole = forward.part == WHOLE
        records = arrays if is_whole else reader.index.records(split, forward.filled.ravel())
        return _to_batch(forward, arrays, records[column])

    def read(key: Key) -> Batch:
        forward = forward_of(key)
        return finish(forward, reader.read(split, forward.positions()))

    if config.reader == "random":
        yield from _in_order(read, keys, reader_threads(config))
        return

    due: deque[_Forward] = deque()

    def requests() -> Iterator[Request]:
        for key in keys:
            forward = forward_of(key)
            due.append(forward)
            yield forward.request()

    def read_next(key: Key) -> Batch:
        arrays = next(stream)
        return finish(due.popleft(), arrays)

    threads = reader_threads(config)
    stream = SampleStream(reader.index, split, requests(), check=config.check, ahead=threads > 0)
    yield from _in_order(read_next, keys, threads, stop=stream.close)


def training_steps(
    reader: ShardReader, plan: EpochPlan, config: DataConfig, *, seed: int, rank: int, epoch: int, first_step: int = 0
) -> Iterator[list[Batch]]:
    """The forward passes of each step of an epoch, from `first_step` on, for one rank."""
    keys = _StepKeys(plan, epoch, first_step)
    batches = _batches(reader, "train", _Training(reader, plan, config, seed=seed, rank=rank), keys, config)
    for _ in range(first_step, plan.num_steps):
        yield [next(batches) for _ in range(plan.forwards_per_step)]


def num_evaluation_batches(reader: ShardReader, split: str, batch_size: int) -> int:
    """Batches of a split, the last of which may be padded."""
    return -(-reader.index.num_samples(split) // batch_size)


def evaluation_batches(
    reader: ShardReader, split: str, config: DataConfig, *, batch_size: int, numbers: range | None = None
) -> Iterator[Batch]:
    """Batches of a split by their numbers (default: all); what one holds does not depend on who reads which."""
    wanted = range(num_evaluation_batches(reader, split, batch_size)) if numbers is None else numbers
    return _batches(reader, split, _Evaluation(reader, split, batch_size), wanted, config)
