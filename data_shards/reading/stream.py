"""Reads shards from end to end and gives samples in any order that stays within a window of shards.

    for batch in SampleStream(index, "train", requests): ...

The order of an epoch mixes the samples of a few shards at a time (`data_shards.reading.shuffle`). A stream reads the
shards of one window after the other, keeps those samples that will be asked for, and drops them with their window. So
it needs no copy of a shard on a disk, and the memory of two windows: the one that it gives, and the one that a thread
reads meanwhile. What it gives is what `ShardReader.read` gives.
"""

import logging
import math
import weakref
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.durable import as_unreadable
from data_shards.format.arrays import decode_array, pad_to_shape
from data_shards.format.schema import MODALITIES, DatasetInfo
from data_shards.reading.batch_arrays import BatchArrays
from data_shards.reading.damage import SUGGESTED_FIX, Damage, mismatch, not_found
from data_shards.reading.index import Records, ShardIndex
from data_shards.reading.packed_layout import PackedLayout

_log = logging.getLogger(__name__)
ANYWHERE = -1
"""The window of a sample that lies in none that is due, such as the one that pads a batch of nothing."""


class Request(NamedTuple):
    """Samples that are read together."""

    positions: NDArray[np.int64]
    """[N], numbers of samples inside the split."""
    windows: NDArray[np.int64]
    """[N], the window that holds each: no smaller than any of the request before, or ANYWHERE."""


def stream_bytes(info: DatasetInfo, split: str, *, window: int, ranks: int) -> int:
    """Bytes of the samples that a rank's stream over the order of an epoch holds on average: two windows, shared.

    A rank may hold more where there are more ranks than ghost batches in a window.
    """
    samples = min(2 * window * info.samples_per_shard, info.counts[split])
    sample = sum(math.prod(info.shape(m)) * info.stored_dtype(m).itemsize for m in MODALITIES)
    return -(-samples // ranks) * sample


class SampleStream:
    """An iterator over the batches of requests, in their order."""

    def __init__(
        self, index: ShardIndex, split: str, requests: Iterable[Request], *, check: bool = True, ahead: bool = True
    ) -> None:
        """Begin a stream; nothing is read before the first batch is asked for.

        Args:
            requests: taken one by one, up to two windows before their batch is due.
            check: compare the crc32 of each member that is used.
            ahead: read the next window in a thread.
        """
        self._index = index
        self._split = split
        self._requests = _Requests(requests)
        self._loader = _WindowLoader(index, split, check=check)
        self._arrays = BatchArrays(index.info)
        self._window: _Window | None = None
        self._next: tuple[int, Future[_Window]] | None = None
        """The window that is being read, and its number."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="stream") if ahead else None
        weakref.finalize(self, self._loader.stopped.set)

    def __iter__(self) -> Iterator[dict[str, NDArray[Any]]]:
        return self

    def __next__(self) -> dict[str, NDArray[Any]]:
        """The batch of the next request, as `ShardReader.read` returns it.

        Raises:
            ValueError: a shard that is missing, cut short, damaged or not to be read: its name, and the sample's key.
            Unreadable: the storage does not answer.
        """
        request = self._requests.take()
        if request is None:
            self.close()
            raise StopIteration
        arrays = self._arrays.empty(len(request.positions))
        for number in np.unique(request.windows).tolist():
            self._copy(request, arrays, window=number)
        return self._arrays.to_batch(arrays, self._index.records(self._split, request.positions))

    def close(self) -> None:
        """Stop reading and drop what was read; may be called from another thread."""
        self._loader.stopped.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._window = self._next = None

    def _copy(self, request: Request, arrays: list[NDArray[Any]], *, window: int) -> None:
        """Copy those samples of a request that lie in a window. Nothing here holds the window when the next is read."""
        entered = self._enter(window)
        chosen = np.flatnonzero(request.windows == window)
        slots = np.searchsorted(entered.positions, request.positions[chosen])
        for array, held in zip(arrays, entered.arrays, strict=True):
            array[chosen] = held[slots]

    def _enter(self, number: int) -> "_Window":
        """The samples of a window, which replaces the one before."""
        if self._window is not None and self._window.number == number:
            return self._window
        self._window = None
        if self._next is not None and self._next[0] == number:
            self._window = self._next[1].result()
        else:
            self._window = self._loader.load(number, self._requests.positions(number))
        self._next = self._begin(self._requests.following(number)) if self._pool is not None else None
        return self._window

    def _begin(self, number: int | None) -> "tuple[int, Future[_Window]] | None":
        """Read a window in the thread."""
        if number is None:
            return None
        assert self._pool is not None
        return number, self._pool.submit(self._loader.load, number, self._requests.positions(number))


class _Requests:
    """Requests that are due, and what they want of each window."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._source = iter(requests)
        self._due: deque[Request] = deque()
        self._wanted: dict[int, list[NDArray[np.int64]]] = {}
        """By window, in their order."""
        self._last = 0
        """The largest window so far."""
        self._is_complete = False

    def take(self) -> Request | None:
        """The next request; None at the end."""
        if not self._due and not self._is_complete:
            self._pull()
        return self._due.popleft() if self._due else None

    def positions(self, window: int) -> NDArray[np.int64]:
        """All samples of a window that any request wants, in the order of the split; asked for once."""
        while not self._is_complete and self._last <= window:
            self._pull()
        return np.unique(np.concatenate(self._wanted.pop(window)))

    def following(self, window: int) -> int | None:
        """The window after one, of those that are wanted; None where it is the last."""
        while not self._is_complete and self._last <= window:
            self._pull()
        return min((number for number in self._wanted if number > window), default=None)

    def _pull(self) -> None:
        request = next(self._source, None)
        if request is None:
            self._is_complete = True
            return
        windows = np.where(request.windows == ANYWHERE, max(self._last, request.windows.max()), request.windows)
        assert windows.min() >= self._last, "requests go back to a window that was left"
        for number in np.unique(windows).tolist():
            self._wanted.setdefault(number, []).append(request.positions[windows == number])
        self._last = int(windows.max())
        self._due.append(Request(request.positions, windows))


@dataclass(frozen=True)
class _Window:
    """Samples that are in memory."""

    number: int
    positions: NDArray[np.int64]
    """[N], sorted."""
    arrays: list[NDArray[Any]]
    """For each modality [N, T, D] (tokens: [N, 3, T]), as they are stored."""


class _Stopped(Exception):
    """The stream was closed while it read."""


class _WindowLoader:
    """Reads samples from the shards that hold them, each shard once and in one go."""

    def __init__(self, index: ShardIndex, split: str, *, check: bool) -> None:
        self._index = index
        self._split = split
        self._check = check
        self._layout = PackedLayout(index) if index.info.layout == "packed" else None
        self._members = [index.info.members[m] for m in MODALITIES]
        self._suffixes = [member.partition(":")[0] for member in self._members]
        self._first_positions = _first_positions(index, split)
        self.stopped = Event()

    def load(self, number: int, positions: NDArray[np.int64]) -> _Window:
        """The samples at sorted `positions`, as window `number`."""
        info = self._index.info
        records = self._index.records(self._split, positions)
        if self._layout is not None:
            self._layout.check(records, self._index.root)
        arrays = [np.empty((len(positions), *info.shape(m)), info.stored_dtype(m)) for m in MODALITIES]
        for shard in np.unique(records["shard"]).tolist():
            slots = np.flatnonzero(records["shard"] == shard)
            wanted = _WantedSamples(shard, positions[slots], records[slots], slots)
            self._read_shard(wanted, arrays)
        return _Window(number, positions, arrays)

    def _read_shard(self, wanted: "_WantedSamples", arrays: list[NDArray[Any]]) -> None:
        """Read samples of one shard into their slots; one that comes damaged from a server is read again."""
        shard = self._index.info.shards[wanted.shard]
        store = self._index.store
        name = f"{store.place}/{shard.name}"
        first = self._first_positions[wanted.shard]
        keys = self._index.strings("key", self._split, np.arange(first, first + shard.samples))
        damaged: _DamagedSample | None = None
        for _ in store.attempts():
            if damaged is not None:
                _log.warning("%s came damaged, at sample %s; reading it again", name, damaged.key)
            with as_unreadable(name):
                try:
                    with store.stream(shard) as file:
                        damaged = self._scan(file, wanted, keys, arrays)
                except (FileNotFoundError, NotADirectoryError) as error:
                    raise ValueError(f"cannot read {name}: {error.strerror}; {SUGGESTED_FIX}") from error
            if damaged is None:
                return
        assert damaged is not None
        raise damaged.explain(name)

    def _scan(
        self, file: BinaryIO, wanted: "_WantedSamples", keys: list[str], arrays: list[NDArray[Any]]
    ) -> "_DamagedSample | None":
        """Read samples into their slots; the first of them that is damaged."""
        from data_shards.reading.tar_scan import (
            scan_samples,
        )  # with webdataset, which who reads at random can do without

        first = self._first_positions[wanted.shard]
        names = {keys[position - first] for position in wanted.positions.tolist()}
        if len(set(keys)) < len(keys):  # only the samples between them keep two with one key apart
            names = set(keys)
        expected = [(first + i, key) for i, key in enumerate(keys) if key in names]
        samples = scan_samples(file, [key for _, key in expected], set(self._suffixes))
        places = {position: i for i, position in enumerate(wanted.positions.tolist())}
        for position, key in expected:
            if self.stopped.is_set():
                raise _Stopped
            sample = next(samples, None)
            i = places.get(position)
            if i is None:  # another sample with the key of one that is wanted
                continue
            record = wanted.records[i]
            if sample is None or sample["__key__"] != key:
                return _DamagedSample(key, not_found(int(record["offset"][0])))
            try:
                self._decode(sample, record, [array[wanted.slots[i]] for array in arrays])
            except Damage as damage:
                return _DamagedSample(key, damage)
        return None

    def _decode(self, sample: dict[str, Any], record: np.void, targets: list[NDArray[Any]]) -> None:
        """Copy the arrays of a sample to `targets`. Raises Damage where a member is not what the index tells of."""
        info = self._index.info
        for m, (modality, suffix, target) in enumerate(zip(MODALITIES, self._suffixes, targets, strict=True)):
            raw = sample.get(suffix, b"")
            is_right = len(raw) == record["size"][m] and (not self._check or zlib.crc32(raw) == record["crc32"][m])
            if not is_right:
                raise mismatch(m, int(record["offset"][m]))
            if self._layout is not None:
                start = len(self._layout.headers[m])
                target[...] = np.frombuffer(raw, target.dtype, offset=start).reshape(target.shape)
            else:
                array = decode_array(raw, self._members[m])
                target[...] = pad_to_shape(array, info.shape(modality), info.stored_dtype(modality))


@dataclass(frozen=True)
class _WantedSamples:
    """Samples of one shard."""

    shard: int
    positions: NDArray[np.int64]
    """[N], numbers inside the split, sorted."""
    records: Records
    """[N]"""
    slots: NDArray[np.int64]
    """[N], where they go."""


class _DamagedSample(NamedTuple):
    """A sample, and what is wrong with it."""

    key: str
    damage: Damage

    def explain(self, shard: str) -> ValueError:
        """The error for a user."""
        return self.damage.explain(shard, self.key)


def _first_positions(index: ShardIndex, split: str) -> dict[int, int]:
    """For each shard of a split the number of its first sample."""
    found = {}
    position = 0
    for number, shard in enumerate(index.info.shards):
        if shard.split == split:
            found[number] = position
            position += shard.samples
    return found
