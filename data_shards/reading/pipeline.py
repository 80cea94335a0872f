"""A set of shards as the first stage of a WebDataset pipeline: every sample of an epoch once, in our order."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from webdataset.utils import pytorch_worker_info

from data_shards.places import PlaceLike
from data_shards.reading.index import ShardIndex
from data_shards.reading.shuffle import epoch_order, epoch_windows
from data_shards.reading.stream import Request, SampleStream
from data_shards.storage.remote import RemoteOptions
from data_shards.storage.store import open_store

DEFAULT_WINDOW = 16
_ORDER_AT_ONCE = 4096
"""Positions whose samples are computed together."""
_SAMPLES_AT_ONCE = 64
"""Samples that are copied out of a window together."""


def pipeline(
    shards: PlaceLike,
    split: str,
    *,
    seed: int = 0,
    epoch: int = 0,
    window: int = DEFAULT_WINDOW,
    rank: int | None = None,
    num_ranks: int | None = None,
    start: int = 0,
    batch_size: int = 1,
    check: bool = True,
    remote: RemoteOptions | None = None,
) -> wds.DataPipeline:
    """One rank's samples of one epoch of a split, as a pipeline to which `.map`, `.batched` etc. add stages.

    Over all ranks, and over the workers of a `wds.WebLoader`, each sample comes exactly once. The order is that of
    `epoch_order` with the same seed, epoch and window: rank r of R has the positions r, r + R, r + 2R, ... of it.

    Workers take turns, `batch_size` samples at a time, and a loader takes turns at them. So with `.batched(batch_size)`
    before the loader, or with batches that are made behind it, what comes does not depend on the number of workers.
    Batches that are made in the workers are many times as fast: a loader takes some milliseconds for what it is given.

    Each worker reads all shards, and holds those samples of two windows that it gives: `2 * window * samples_per_shard
    / (ranks * workers)`.

    Args:
        shards: a directory or URL; nothing is copied to the node's cache but the index.
        window: shards whose samples are mixed with each other at a time.
        rank: this process's number, of `num_ranks`; default: as WebDataset finds them, from the environment (RANK and
            WORLD_SIZE) or torch.distributed, else one rank.
        start: samples of this rank that are left out: those that came before an interruption.
        batch_size: samples in a row that one worker of a loader gives.
        check: compare the crc32 of each member that is read.
        remote: time limits and attempts of requests to a server.

    Returns:
        A pipeline over dicts: `__key__` str, `id` str, `row` int (number in the split), `text` [T, D] float32 or [3, T]
        int64 tokens, `audio` and `vision` [T, D] float32, `label` float32, `lengths` [3] int64, and `class` int64 where
        the set has class labels, `emotions` [L] uint8 where it has those. `class` and `label` are numpy scalars.

    Raises:
        ValueError: no such set or split, a rank or start that is impossible; while samples are read, a shard that is
            missing, cut short or damaged.
    """
    index = ShardIndex(open_store(shards, remote=remote))
    index.shard_size(split)  # says that there is no such split
    if (rank is None) != (num_ranks is None):
        raise ValueError("rank and num_ranks go together; give both or none")
    if rank is not None and num_ranks is not None and not 0 <= rank < num_ranks:
        raise ValueError(f"rank is {rank} of {num_ranks}; it must be from 0 to {num_ranks - 1}")
    if start < 0:
        raise ValueError(f"start is {start}; it must be at least 0")
    for what, value in (("window", window), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{what} is {value}; it must be at least 1")
    ranks = None if rank is None or num_ranks is None else (rank, num_ranks)
    order = {"seed": seed, "epoch": epoch, "window": window}
    share = {"start": start, "batch_size": batch_size}
    return wds.FluidWrapper(_EpochSamples(index, split, order, ranks=ranks, check=check, **share))


class _EpochSamples:
    """A stage that yields samples. Picklable, so loaders may hand it to their workers."""

    def __init__(
        self,
        index: ShardIndex,
        split: str,
        order: dict[str, int],
        *,
        ranks: tuple[int, int] | None,
        start: int,
        batch_size: int,
        check: bool,
    ) -> None:
        self._index = index
        self._split = split
        self._order = order
        """Seed, epoch and window."""
        self._ranks = ranks
        """The rank, and how many there are; None: as WebDataset finds them."""
        self._start = start
        self._batch_size = batch_size
        self._check = check

    def __call__(self) -> Iterator[dict[str, Any]]:
        """The samples of this process."""
        given: deque[NDArray[np.int64]] = deque()
        stream = SampleStream(self._index, self._split, self._requests(given), check=self._check)
        try:
            for batch in stream:
                rows = given.popleft()
                keys, ids = (self._index.strings(column, self._split, rows) for column in ("key", "id"))
                for i, row in enumerate(rows.tolist()):
                    arrays = {name: array[i] for name, array in batch.items()}
                    yield {"__key__": keys[i], "id": ids[i], "row": row, **arrays}
        finally:
            stream.close()

    def _requests(self, given: deque[NDArray[np.int64]]) -> Iterator[Request]:
        """What this process reads; the rows of each request are appended to `given`."""
        num_samples = self._index.num_samples(self._split)
        order = {**self._order, "num_samples": num_samples, "shard_size": self._index.shard_size(self._split)}
        for places in self._positions():
            rows, windows = epoch_order(places, **order), epoch_windows(places, **order)
            for first in range(0, len(rows), _SAMPLES_AT_ONCE):
                chosen = slice(first, first + _SAMPLES_AT_ONCE)
                given.append(rows[chosen])
                yield Request(rows[chosen], windows[chosen])

    def _positions(self) -> Iterator[NDArray[np.int64]]:
        """The places of this process in the order of the epoch, some thousands at a time."""
        found_rank, found_ranks, worker, num_workers = pytorch_worker_info()
        rank, num_ranks = self._ranks or (found_rank, found_ranks)
        of_rank = range(rank, self._index.num_samples(self._split), num_ranks)[self._start :]
        batches = range(worker, -(-len(of_rank) // self._batch_size), num_workers)
        at_once = max(1, _ORDER_AT_ONCE // self._batch_size)
        for begin in range(0, len(batches), at_once):
            firsts = np.array(batches[begin : begin + at_once])[:, None] * self._batch_size
            numbers = (firsts + np.arange(self._batch_size)).ravel()
            yield of_rank.start + of_rank.step * numbers[numbers < len(of_rank)]
