"""A table column of lists of lists of numbers, as one [T, D] array per row without a Python object per number."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_shards.sources.conversions import finite


class Nested:
    """The arrays of a column; rows may have different T, and all have the same D."""

    def __init__(self, column: pa.ChunkedArray, name: str, path: str) -> None:
        """Read a column; `ValueError` where it is not steps by features, or has gaps."""
        where = f"{path}: {name}"
        if not len(column):
            raise ValueError(f"{where} is empty: the table has no rows; leave it out or fill it")
        self._row_offsets, steps = _unpack(column.combine_chunks(), where)
        step_offsets, numbers = _unpack(steps, where)
        if not (pa.types.is_floating(numbers.type) or pa.types.is_integer(numbers.type)) or numbers.null_count:
            raise ValueError(f"{where} holds {numbers.type} with {numbers.null_count} gaps; it must hold numbers")
        widths = np.diff(step_offsets)
        self.width = int(widths[0]) if len(widths) else 0
        if self.width == 0 or (widths != self.width).any():
            raise ValueError(f"{where} is ragged in its features; every step needs the same number of them")
        self.longest = int(np.diff(self._row_offsets).max()) if len(self._row_offsets) > 1 else 0
        self._values = numbers.to_numpy(zero_copy_only=False).reshape(-1, self.width)

    def __getitem__(self, i: int) -> NDArray[Any]:
        return self._values[self._row_offsets[i] : self._row_offsets[i + 1]]

    def steps(self, i: int) -> int:
        """Steps of row `i`."""
        return int(self._row_offsets[i + 1] - self._row_offsets[i])

    def nonfinite(self) -> Iterator[tuple[int, int]]:
        """(row, how many) for the rows with NaN or infinite values."""
        bad = (~finite(self._values)).sum(axis=1)
        for step in np.flatnonzero(bad).tolist():
            yield int(np.searchsorted(self._row_offsets, step, side="right")) - 1, int(bad[step])


def _unpack(array: Any, where: str) -> tuple[NDArray[np.int64], Any]:
    """The offsets [N + 1] of the lists in their values, and the values."""
    if array.null_count:
        raise ValueError(f"{where} has {array.null_count} gaps; every sample needs all modalities")
    if pa.types.is_fixed_size_list(array.type):
        return np.arange(len(array) + 1, dtype=np.int64) * array.type.list_size, array.flatten()
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        offsets = array.offsets.to_numpy().astype(np.int64)
        return offsets - offsets[0], array.flatten()
    raise ValueError(f"{where} is {array.type}; it must be a list of lists of numbers")
