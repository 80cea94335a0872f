"""Random access to samples: one `preadv` per sample, directly into the arrays of a batch, no tar parsing.

    reader = ShardReader("shards")             # or "s3://bucket/shards", through the node's cache
    batch = reader.read("train", [5, 0, 17])   # {"text": [3, T, D], "audio": ..., "label": [3], "lengths": [3, 3]}

A reader holds only open files, a few index rows and the memory of earlier batches, so any number of processes may hold
one. It can be pickled. It is safe across fork, as nothing reads at a shared file position, and threads may share it.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.format.arrays import decode_array, json_field, pad_to_shape
from data_shards.format.schema import MEMBERS, MODALITIES
from data_shards.places import PlaceLike
from data_shards.reading.batch_arrays import BatchArrays
from data_shards.reading.damage import Damage, mismatch, truncated
from data_shards.reading.index import Positions, Records, ShardIndex
from data_shards.reading.packed_layout import PackedLayout
from data_shards.reading.shard_files import ShardFiles
from data_shards.storage.cache import CacheOptions
from data_shards.storage.remote import RemoteOptions
from data_shards.storage.store import open_store

_JSON = MEMBERS.index("json")


class ShardReader:
    """Reads samples of one set of shards by split and position."""

    def __init__(
        self,
        path: PlaceLike,
        *,
        check: bool = True,
        cache: CacheOptions | None = None,
        remote: RemoteOptions | None = None,
    ) -> None:
        """Open the shards at a directory or URL.

        Args:
            check: compare a sample's crc32 the first time it is read.
            cache: where copies of remote shards live; default: as the environment says.
            remote: time limits and attempts of requests to a server.
        """
        self.index = ShardIndex(open_store(path, cache=cache, remote=remote))
        self._check = check
        self._files = ShardFiles(self.index.store, self.index.info.shards)
        self._layout = PackedLayout(self.index)
        self._arrays = BatchArrays(self.index.info)
        self._checked: dict[str, NDArray[np.uint8]] = {}
        """Per split one bit per sample: whether its checksum was found right."""

    def read(self, split: str, positions: Positions) -> dict[str, NDArray[Any]]:
        """The samples at `positions` (row numbers inside the split), stacked.

        Returns:
            `text` [N, T, D] float32 or [N, 3, T] int64 tokens, `audio` and `vision` [N, T, D] float32,
            `label` [N] float32, `lengths` [N, 3] int64 in the order text, audio, vision; `class` [N] int64 where the
            set has class labels; `emotions` [N, L] uint8, 0 or 1, where it has emotions.

        Raises:
            ValueError: a position or split that is not there; a shard that is missing, cut short or damaged.
        """
        info = self.index.info
        wanted = np.asarray(positions, dtype=np.int64)
        records = self.index.records(split, wanted)
        arrays = self._arrays.empty(len(records))
        fill = self._fill_packed if info.layout == "packed" else self._fill_mapped
        unchecked = self._unchecked(split, wanted)
        fill(arrays, _Request(split, wanted, records, unchecked))
        if unchecked.any():
            np.bitwise_or.at(self._checked[split], wanted >> 3, np.uint8(1) << (wanted & 7).astype(np.uint8))
        return self._arrays.to_batch(arrays, records)

    def raw_texts(self, split: str, positions: Positions) -> list[str]:
        """The sentences of the samples at `positions`; empty where the set has none."""
        member = self.index.info.members["json"]
        texts = []
        for record, position in zip(self.index.records(split, positions), np.asarray(positions).tolist(), strict=True):
            raw = self._read_member(record, _JSON, _SampleName(split, position), check=True) if member else b""
            field = member.partition(":")[2]
            texts.append(str(json_field(raw, field)) if field else raw.decode("utf-8", errors="replace"))
        return texts

    def prefetch(self, split: str, positions: Positions) -> None:
        """Download the shards of these samples before they are read; nothing to do for local shards."""
        if not self.index.store.is_remote:
            return
        for shard in np.unique(self.index.records(split, positions)["shard"]).tolist():
            self._files.fetch(shard)

    def close(self) -> None:
        """Close all files; the next read opens what it needs."""
        self._files.close()
        self.index.close()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": {}}

    def _unchecked(self, split: str, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not self._check:
            return np.zeros(len(wanted), dtype=bool)
        if split not in self._checked:
            self._checked[split] = np.zeros(self.index.num_samples(split) // 8 + 1, dtype=np.uint8)
        return (self._checked[split][wanted >> 3] >> (wanted & 7) & 1) == 0

    def _fill_packed(self, arrays: list[NDArray[Any]], request: "_Request") -> None:
        """Read each sample of our own tars into its row of `arrays`; what lies between goes to scratch memory."""
        layout = self._layout
        records = request.records
        layout.check(records, self.index.root)
        views = [array.reshape(-1).view(np.uint8).data for array in arrays]
        scratch = [memoryview(bytearray(size)) for size in layout.skipped]
        shards, offsets = records["shard"].tolist(), records["offset"][:, 0].tolist()
        for i, (shard, offset) in enumerate(zip(shards, offsets, strict=True)):
            parts = []
            for view, size, skipped in zip(views, layout.sizes, scratch, strict=True):
                parts += [skipped, view[i * size : (i + 1) * size]]
            verify = partial(self._verify_parts, parts, records[i]) if request.unchecked[i] else None
            try:
                self._read(shard, offset, parts, layout.total, verify=verify)
            except Damage as error:
                raise self._explain(error, shard, request.name(i)) from error

    def _fill_mapped(self, arrays: list[NDArray[Any]], request: "_Request") -> None:
        """The same for externally created tars, member by member."""
        info = self.index.info
        for i, record in enumerate(request.records):
            for m, modality in enumerate(MODALITIES):
                raw = self._read_member(record, m, request.name(i), check=bool(request.unchecked[i]))
                array = decode_array(raw, info.members[modality])
                arrays[m][i] = pad_to_shape(array, info.shape(modality), info.stored_dtype(modality))

    def _read_member(self, record: np.void, m: int, name: "_SampleName", *, check: bool) -> bytes:
        """The bytes of member `m` of a sample, in the order of MEMBERS."""
        shard, offset, size = int(record["shard"]), int(record["offset"][m]), int(record["size"][m])
        if not 0 <= offset <= offset + size <= self.index.info.shards[shard].bytes:
            raise self._explain(truncated(offset), shard, name)
        raw = bytearray(size)

        def verify() -> None:
            if zlib.crc32(raw) != record["crc32"][m]:
                raise mismatch(m, offset)

        try:
            self._read(shard, offset, [memoryview(raw)], size, verify=verify if check else None)
        except Damage as error:
            raise self._explain(error, shard, name) from error
        return bytes(raw)

    def _read(
        self, shard: int, offset: int, parts: list[memoryview], size: int, *, verify: Callable[[], None] | None
    ) -> None:
        """Fill `parts`, `size` bytes in all, and verify them. A damaged copy of a remote shard is downloaded once more.

        Raises:
            Damage: the original is damaged, or the new copy is, too.
        """
        for is_last_attempt in (False, True):
            try:
                self._files.read(shard, offset, parts, size)
                if verify is not None:
                    verify()
                return
            except Damage:
                if is_last_attempt or not self._files.discard(shard):
                    raise

    def _verify_parts(self, parts: list[memoryview], record: np.void) -> None:
        """Compare the checksum of each array, with its header before it, to the index."""
        for m, header in enumerate(self._layout.headers):
            found = zlib.crc32(parts[2 * m + 1], zlib.crc32(parts[2 * m][-len(header) :]))
            if found != record["crc32"][m]:
                raise mismatch(m, int(record["offset"][m]))

    def _explain(self, damage: Damage, shard: int, name: "_SampleName") -> ValueError:
        return damage.explain(self._files.name(shard), self.index.strings("key", name.split, [name.position])[0])


class _SampleName(NamedTuple):
    """A sample, as errors find its key."""

    split: str
    position: int


@dataclass(frozen=True)
class _Request:
    """The samples of a batch [N]."""

    split: str
    positions: NDArray[np.int64]
    records: Records
    unchecked: NDArray[np.bool_]
    """Those whose checksums are still to be compared."""

    def name(self, i: int) -> _SampleName:
        """Sample `i` of the batch."""
        return _SampleName(self.split, int(self.positions[i]))
