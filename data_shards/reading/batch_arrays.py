"""The arrays of a batch: as the shards store them, and as readers return them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.format.schema import MODALITIES, DatasetInfo
from data_shards.reading.buffer_pool import BufferPool
from data_shards.reading.index import Records


class BatchArrays:
    """Makes batches of a set in memory that is reused. Picklable; threads may share one."""

    def __init__(self, info: DatasetInfo) -> None:
        self._info = info
        self._buffers = BufferPool()

    def empty(self, count: int) -> list[NDArray[Any]]:
        """For each modality an array for `count` samples as they are stored, [count, T, D] or [count, 3, T]."""
        info = self._info
        return [self._buffers.empty((count, *info.shape(m)), info.stored_dtype(m)) for m in MODALITIES]

    def to_batch(self, arrays: list[NDArray[Any]], records: Records) -> dict[str, NDArray[Any]]:
        """What readers return of these samples (`data_shards.reading.reader.ShardReader.read`)."""
        batch = {m: self._widen(array) for m, array in zip(MODALITIES, arrays, strict=True)}
        if self._info.classes:
            batch["class"] = records["class"].astype(np.int64)
        if self._info.emotions:
            batch["emotions"] = records["emotions"].copy()
        return {**batch, "label": records["label"].copy(), "lengths": records["length"].astype(np.int64)}

    def _widen(self, array: NDArray[Any]) -> NDArray[Any]:
        """A stored array as float32, or int64 for tokens."""
        dtype = np.dtype(np.int64 if array.dtype.kind == "i" else np.float32)
        if array.dtype == dtype:
            return array
        wide = self._buffers.empty(array.shape, dtype)
        np.copyto(wide, array)
        return wide
