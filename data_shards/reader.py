"""Random access to samples: one `preadv` per sample, straight into the arrays of a batch, no tar parsing.

    reader = ShardReader("shards")
    batch = reader.read("train", [5, 0, 17])   # {"text": [3, T, D], "audio": ..., "label": [3], "lengths": [3, 3]}

A reader keeps only open files and a few index rows, so any number of processes may hold one: it is picklable, and
safe across fork because nothing reads at a shared file position.
"""

import os
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards import npy
from data_shards.index import Records, ShardIndex
from data_shards.schema import MODALITIES
from data_shards.tar import read_json_member

_OPEN_SHARDS = 128
_JSON = len(MODALITIES)
REPAIR = "restore the shard or rebuild with `dmd shard`; `dmd verify` lists all damage"


class ShardReader:
    """Reads samples of one set of shards by split and position."""

    def __init__(self, path: str | Path, *, check: bool = True) -> None:
        """Open the shards in directory `path`; with `check` a sample's crc32 is compared the first time it is read."""
        self.index = ShardIndex.load(path)
        self._check = check
        info = self.index.info
        self._heads = [npy.header(info.shape(m), info.stored_dtype(m)) for m in MODALITIES]
        self._bytes = [int(np.prod(info.shape(m))) * info.stored_dtype(m).itemsize for m in MODALITIES]
        self._sizes = np.array([len(head) + size for head, size in zip(self._heads, self._bytes, strict=True)])
        self._files: OrderedDict[int, int] = OrderedDict()
        self._checked: dict[str, NDArray[np.bool_]] = {}

    def read(self, split: str, positions: Sequence[int] | NDArray[np.integer]) -> dict[str, NDArray[Any]]:
        """The samples at `positions` (row numbers inside the split), stacked.

        Returns:
            `text` [N, T, D] float32 or [N, 3, T] int64 tokens, `audio` and `vision` [N, T, D] float32,
            `label` [N] float32, `lengths` [N, 3] int64 in the order text, audio, vision.

        Raises:
            ValueError: a position or split that is not there; a shard that is missing, cut short or damaged.
        """
        info = self.index.info
        records = self.index.records(split, positions)
        arrays = [np.empty((len(records), *info.shape(m)), info.stored_dtype(m)) for m in MODALITIES]
        unchecked = self._unchecked(split, positions)
        self._fill(records, arrays, unchecked, split, positions)
        if self._check:
            self._checked[split][np.asarray(positions, dtype=np.int64)] = True
        tokens = info.text_kind == "tokens"
        batch: dict[str, NDArray[Any]] = {
            m: array.astype(np.int64 if tokens and m == "text" else np.float32, copy=False)
            for m, array in zip(MODALITIES, arrays, strict=True)
        }
        return {**batch, "label": records["label"], "lengths": records["length"].astype(np.int64)}

    def raw_texts(self, split: str, positions: Sequence[int] | NDArray[np.integer]) -> list[str]:
        """The sentences of the samples at `positions`, from their `.json` members."""
        texts = []
        for record, position in zip(self.index.records(split, positions), positions, strict=True):
            raw = bytearray(int(record["size"][_JSON]))
            self._read_at(record, int(record["offset"][_JSON]), [memoryview(raw)], split, int(position))
            if zlib.crc32(raw) != record["crc32"][_JSON]:
                raise self._damaged(record, _JSON, split, int(position))
            texts.append(str(read_json_member(bytes(raw)).get("raw_text", "")))
        return texts

    def close(self) -> None:
        """Give back all file handles; the next read opens what it needs."""
        for handle in self._files.values():
            os.close(handle)
        self._files.clear()
        self.index.close()

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict(), "_checked": {}}

    def _unchecked(self, split: str, positions: Sequence[int] | NDArray[np.integer]) -> NDArray[np.bool_]:
        if not self._check:
            return np.zeros(len(positions), dtype=bool)
        if split not in self._checked:
            self._checked[split] = np.zeros(self.index.num_samples(split), dtype=bool)
        return ~self._checked[split][np.asarray(positions, dtype=np.int64)]

    def _fill(
        self,
        records: Records,
        arrays: list[NDArray[Any]],
        unchecked: NDArray[np.bool_],
        split: str,
        positions: Sequence[int] | NDArray[np.integer],
    ) -> None:
        """Read each record's arrays into its row of `arrays`; the gaps between them go to scratch memory."""
        offsets, sizes = records["offset"][:, :_JSON], records["size"][:, :_JSON]
        wrong = np.flatnonzero((sizes != self._sizes).any(axis=1))
        if len(wrong):
            raise ValueError(f"{split} sample {positions[wrong[0]]}: its members do not have the shape of the set")
        gaps = offsets[:, 1:] - offsets[:, :-1] - sizes[:, :-1]
        views = [array.reshape(-1).view(np.uint8).data for array in arrays]
        heads = [memoryview(bytearray(len(head))) for head in self._heads]
        for i, record in enumerate(records):
            parts: list[memoryview] = []
            for m, size in enumerate(self._bytes):
                if m:
                    parts.append(memoryview(bytearray(int(gaps[i, m - 1]))))
                parts += [heads[m], views[m][i * size : (i + 1) * size]]
            self._read_at(record, int(offsets[i, 0]), parts, split, int(positions[i]))
            if unchecked[i]:
                for m, size in enumerate(self._bytes):
                    found = zlib.crc32(views[m][i * size : (i + 1) * size], zlib.crc32(heads[m]))
                    if found != record["crc32"][m]:
                        raise self._damaged(record, m, split, int(positions[i]))

    def _read_at(self, record: np.void, offset: int, parts: list[memoryview], split: str, position: int) -> None:
        """Fill `parts` from the record's shard, from `offset` on."""
        shard = int(record["shard"])
        handle = self._files.get(shard)
        if handle is None:
            handle = self._open(shard)
        if os.preadv(handle, parts, offset) != sum(map(len, parts)):
            name = self.index.info.shards[shard].name
            key = self.index.strings("key", split, [position])[0]
            raise ValueError(f"{self.index.root / name} is cut short: sample {key} at {offset} is missing; {REPAIR}")

    def _open(self, shard: int) -> int:
        path = self.index.root / self.index.info.shards[shard].name
        try:
            handle = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}; {REPAIR}") from error
        self._files[shard] = handle
        if len(self._files) > _OPEN_SHARDS:
            os.close(self._files.popitem(last=False)[1])
        return handle

    def _damaged(self, record: np.void, member: int, split: str, position: int) -> ValueError:
        name = self.index.info.shards[int(record["shard"])].name
        key = self.index.strings("key", split, [position])[0]
        what = (*MODALITIES, "json")[member]
        at = int(record["offset"][member])
        return ValueError(f"{self.index.root / name} is damaged: {what} of sample {key} at offset {at}; {REPAIR}")
