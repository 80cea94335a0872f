"""Random access to samples: one `preadv` per sample, straight into the arrays of a batch, no tar parsing.

    reader = ShardReader("shards")             # or "s3://bucket/shards", through the node's cache
    batch = reader.read("train", [5, 0, 17])   # {"text": [3, T, D], "audio": ..., "label": [3], "lengths": [3, 3]}

A reader keeps only open files, a few index rows and the memory of past batches, so any number of processes may hold
one: it is picklable, safe across fork because nothing reads at a shared file position, and threads may share it.
"""

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.format import npy
from data_shards.format.arrays import decode_array, fit, json_field
from data_shards.format.schema import MEMBERS, MODALITIES
from data_shards.format.tar import BLOCK
from data_shards.places import Where
from data_shards.reading.buffer_pool import Buffers
from data_shards.reading.index import Positions, Records, ShardIndex
from data_shards.reading.shard_files import REPAIR, CutShort, ShardFiles
from data_shards.storage.cache import CacheOptions
from data_shards.storage.remote import RemoteOptions
from data_shards.storage.store import open_store

_JSON = MEMBERS.index("json")


class ShardReader:
    """Reads samples of one set of shards by split and position."""

    def __init__(
        self,
        path: Where,
        *,
        check: bool = True,
        cache: CacheOptions | None = None,
        remote: RemoteOptions | None = None,
    ) -> None:
        """Open the shards at a directory or URL.

        Args:
            check: compare a sample's crc32 the first time it is read.
            cache: where copies of remote shards live; default: as the environment says.
            remote: how patient to be with a server.
        """
        self.index = ShardIndex(open_store(path, cache=cache, remote=remote))
        self._check = check
        self._files = ShardFiles(self.index.store, self.index.info.shards)
        self._layout = _Layout(self.index)
        self._buffers = Buffers()
        self._checked: dict[str, NDArray[np.uint8]] = {}
        """A bit per sample of a split: whether it was found intact."""

    def read(self, split: str, positions: Positions) -> dict[str, NDArray[Any]]:
        """The samples at `positions` (row numbers inside the split), stacked.

        Returns:
            `text` [N, T, D] float32 or [N, 3, T] int64 tokens, `audio` and `vision` [N, T, D] float32,
            `label` [N] float32, `lengths` [N, 3] int64 in the order text, audio, vision; `class` [N] int64 where the
            set has class labels.

        Raises:
            ValueError: a position or split that is not there; a shard that is missing, cut short or damaged.
        """
        info = self.index.info
        wanted = np.asarray(positions, dtype=np.int64)
        records = self.index.records(split, wanted)
        arrays = [self._buffers.empty((len(records), *info.shape(m)), info.stored_dtype(m)) for m in MODALITIES]
        fill = self._fill_packed if info.layout == "packed" else self._fill_mapped
        unchecked = self._unchecked(split, wanted)
        fill(records, arrays, split, wanted, unchecked)
        if unchecked.any():
            np.bitwise_or.at(self._checked[split], wanted >> 3, np.uint8(1) << (wanted & 7).astype(np.uint8))
        batch = {m: self._widened(array) for m, array in zip(MODALITIES, arrays, strict=True)}
        if info.classes:
            batch["class"] = records["class"].astype(np.int64)
        return {**batch, "label": records["label"], "lengths": records["length"].astype(np.int64)}

    def raw_texts(self, split: str, positions: Positions) -> list[str]:
        """The sentences of the samples at `positions`; empty where the set has none."""
        member = self.index.info.members["json"]
        texts = []
        for record, position in zip(self.index.records(split, positions), np.asarray(positions).tolist(), strict=True):
            raw = self._member(record, _JSON, split, position, check=True) if member else b""
            field = member.partition(":")[2]
            texts.append(str(json_field(raw, field)) if field else raw.decode("utf-8", errors="replace"))
        return texts

    def prefetch(self, split: str, positions: Positions) -> None:
        """Fetch the shards of these samples before they are read; nothing to do where they are local."""
        if not self.index.store.is_remote:
            return
        for shard in np.unique(self.index.records(split, positions)["shard"]).tolist():
            self._files.fetch(shard)

    def close(self) -> None:
        """Give back all file handles; the next read opens what it needs."""
        self._files.close()
        self.index.close()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_checked": {}}

    def _widened(self, array: NDArray[Any]) -> NDArray[Any]:
        """What was stored, in the type that models want."""
        dtype = np.dtype(np.int64 if array.dtype.kind == "i" else np.float32)
        if array.dtype == dtype:
            return array
        wide = self._buffers.empty(array.shape, dtype)
        np.copyto(wide, array)
        return wide

    def _unchecked(self, split: str, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
        if not self._check:
            return np.zeros(len(wanted), dtype=bool)
        if split not in self._checked:
            self._checked[split] = np.zeros(self.index.num_samples(split) // 8 + 1, dtype=np.uint8)
        return (self._checked[split][wanted >> 3] >> (wanted & 7) & 1) == 0

    def _fill_packed(
        self,
        records: Records,
        arrays: list[NDArray[Any]],
        split: str,
        wanted: NDArray[np.int64],
        unchecked: NDArray[np.bool_],
    ) -> None:
        """Read each record's arrays into its row of `arrays`; what lies between them goes to scratch memory."""
        layout = self._layout
        layout.check(records, self.index.root)
        views = [array.reshape(-1).view(np.uint8).data for array in arrays]
        before = [memoryview(bytearray(size)) for size in layout.before]
        shards, offsets = records["shard"].tolist(), records["offset"][:, 0].tolist()
        sizes, total = layout.sizes, layout.total
        for i, (shard, offset) in enumerate(zip(shards, offsets, strict=True)):
            parts = []
            for view, size, scratch in zip(views, sizes, before, strict=True):
                parts += [scratch, view[i * size : (i + 1) * size]]
            for last_try in (False, True):
                try:
                    self._files.read(shard, offset, parts, total)
                    if unchecked[i]:
                        self._check_parts(parts, records[i], split, int(wanted[i]))
                    break
                except (CutShort, _Damaged) as error:
                    if last_try or not self._files.discard(shard):
                        raise self._explain(error, shard, offset, split, int(wanted[i])) from error

    def _check_parts(self, parts: list[memoryview], record: np.void, split: str, position: int) -> None:
        for m, head in enumerate(self._layout.heads):
            found = zlib.crc32(parts[2 * m + 1], zlib.crc32(parts[2 * m][-len(head) :]))
            if found != record["crc32"][m]:
                raise _Damaged(m, int(record["offset"][m]))

    def _fill_mapped(
        self,
        records: Records,
        arrays: list[NDArray[Any]],
        split: str,
        wanted: NDArray[np.int64],
        unchecked: NDArray[np.bool_],
    ) -> None:
        """The same for externally created tars, member by member."""
        info = self.index.info
        for i, record in enumerate(records):
            for m, modality in enumerate(MODALITIES):
                raw = self._member(record, m, split, int(wanted[i]), check=bool(unchecked[i]))
                array = decode_array(raw, info.members[modality])
                arrays[m][i] = fit(array, info.shape(modality), info.stored_dtype(modality))

    def _member(self, record: np.void, m: int, split: str, position: int, *, check: bool) -> bytes:
        """The bytes of one member."""
        shard, offset, size = int(record["shard"]), int(record["offset"][m]), int(record["size"][m])
        if not 0 <= offset <= offset + size <= self.index.info.shards[shard].bytes:
            raise self._explain(CutShort(), shard, offset, split, position)
        for last_try in (False, True):
            try:
                raw = bytearray(size)
                self._files.read(shard, offset, [memoryview(raw)], size)
                if check and zlib.crc32(raw) != record["crc32"][m]:
                    raise _Damaged(m, offset)
                break
            except (CutShort, _Damaged) as error:
                if last_try or not self._files.discard(shard):
                    raise self._explain(error, shard, offset, split, position) from error
        return bytes(raw)

    def _explain(self, error: Exception, shard: int, offset: int, split: str, position: int) -> ValueError:
        key = self.index.strings("key", split, [position])[0]
        if isinstance(error, _Damaged):
            what = f"is damaged: {MEMBERS[error.member]} of sample {key} at offset {error.offset}"
        else:
            what = f"is cut short: sample {key} at offset {offset} is missing"
        return ValueError(f"{self._files.name(shard)} {what}; {REPAIR}")


class _Damaged(Exception):
    """A member does not match its crc32."""

    def __init__(self, member: int, offset: int) -> None:
        super().__init__()
        self.member, self.offset = member, offset


class _Layout:
    """How a sample lies in our own tars: the same for all samples of a set, as all have the same shapes."""

    def __init__(self, index: ShardIndex) -> None:
        info = index.info
        self.heads = [npy.header(info.shape(m), info.stored_dtype(m)) for m in MODALITIES]
        self.sizes = [int(np.prod(info.shape(m))) * info.stored_dtype(m).itemsize for m in MODALITIES]
        members = [len(head) + size for head, size in zip(self.heads, self.sizes, strict=True)]
        steps = [size + -size % BLOCK + BLOCK for size in members]
        gaps = [0, *(step - size for step, size in zip(steps[:-1], members[:-1], strict=True))]
        self.before = [gap + len(head) for gap, head in zip(gaps, self.heads, strict=True)]
        """Bytes to skip before each array: padding and tar header, then its own header."""
        self.total = sum(self.before) + sum(self.sizes)
        if info.layout == "packed" and self.total > max(shard.bytes for shard in info.shards):
            raise ValueError(f"{index.root}: no shard is as large as one sample; rebuild with `dmd shard`")
        self._members, self._steps = np.array(members), np.array(steps[:-1])

    def check(self, records: Records, place: str) -> None:
        """Make sure that records do lie so."""
        offsets, sizes = records["offset"][:, :_JSON], records["size"][:, :_JSON]
        if (sizes != self._members).any() or (offsets[:, 1:] - offsets[:, :-1] != self._steps).any():
            raise ValueError(f"{place}: samples do not have the shape that the index names; rebuild with `dmd shard`")
