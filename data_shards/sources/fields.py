"""The fields of one split of a feature pickle, each checked for what it should be; errors say where and what."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LABELS = ("regression_labels", "labels")
_BLOCK = 256


class Rows:
    """The arrays of all samples of one modality: one [N, T, D] array, or a list of [T, D] arrays of one shape."""

    def __init__(self, values: Any, where: str) -> None:
        self._values, self._where = values, where
        if not len(values):
            raise ValueError(f"{where} is empty; leave the split out or fill it")
        first = values[0]
        if not isinstance(values, np.ndarray) or values.dtype.kind == "O":
            self._values = [_numbers(value, where) for value in values]
            first = self._values[0]
            if any(array.shape != first.shape for array in self._values):
                raise ValueError(f"{where} is ragged; every sample needs the same shape")
        self.shape = (len(values), *first.shape)
        dtype = values.dtype if isinstance(values, np.ndarray) and values.dtype.kind != "O" else first.dtype
        if dtype.kind not in "iuf":
            raise ValueError(f"{where} is {dtype}; it must hold numbers")
        if len(self.shape) != 3 or 0 in self.shape[1:]:
            raise ValueError(f"{where} has shape {self.shape}; it must be [samples, steps, features]")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, i: int) -> NDArray[Any]:
        return np.asarray(self._values[i])

    def nonfinite(self, release: Callable[[], None]) -> tuple[int, int]:
        """How many values are NaN or infinite, and the first sample that has one (-1: none).

        `release` is called now and then: it may let go of memory that arrays in a file take while they are read.
        """
        total, first = 0, -1
        for start in range(0, len(self), _BLOCK):
            bad = ~np.isfinite(np.asarray(self._values[start : start + _BLOCK]))
            if bad.any():
                rows = bad.reshape(len(bad), -1).sum(axis=1)
                first = start + int(np.argmax(rows > 0)) if first < 0 else first
                total += int(rows.sum())
            release()
        return total, first


def column(fields: dict[str, Any], name: str, where: str) -> Any:
    """A field with one entry per sample."""
    values = fields.get(name)
    if values is None or not hasattr(values, "__len__") or isinstance(values, (str, bytes, dict)):
        raise ValueError(f"{where} lacks {name}; it has {', '.join(map(str, fields))}")
    return values


def rows(fields: dict[str, Any], name: str, where: str) -> Rows:
    """A modality's arrays."""
    return Rows(column(fields, name, where), f"{where}: {name}")


def labels(fields: dict[str, Any], where: str) -> NDArray[np.float64]:
    """The sentiment of each sample, as `regression_labels` (MMSA) or `labels` (MulT) [N], [N, 1] or [N, 1, 1]."""
    name = next((name for name in _LABELS if name in fields), None)
    if name is None:
        raise ValueError(f"{where} lacks regression_labels; it has {', '.join(map(str, fields))}")
    try:
        return np.asarray(fields[name], dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name} are not numbers") from error


def classes(fields: dict[str, Any], where: str) -> NDArray[np.int64]:
    """The class number of each sample, as `classification_labels` [N] or [N, 1]."""
    given = column(fields, "classification_labels", where)
    try:
        numbers = np.asarray(given, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: classification_labels are not numbers") from error
    if not np.array_equal(numbers, np.floor(numbers)):
        raise ValueError(f"{where}: classification_labels are not whole numbers; leave out --class-labels")
    return numbers.astype(np.int64)


def lengths(given: Any, *, count: int, steps: int, where: str) -> NDArray[np.int64]:
    """Valid steps of each sample, at most `steps`; all of them where none are given."""
    if given is None:
        return np.full(count, steps, dtype=np.int64)
    numbers = np.asarray(given).reshape(-1)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iuf":
        raise ValueError(f"{where} needs one number per sample, {count} in all")
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers <= steps)))
    if len(wrong):
        raise ValueError(f"{where} of sample {wrong[0]} is {numbers[wrong[0]]}, but the array has {steps} steps")
    return numbers.astype(np.int64)


def same_count(fields: dict[str, Sequence[Any] | NDArray[Any] | Rows], where: str) -> int:
    """The common number of samples of a split's fields; `ValueError` where they differ or there is none."""
    counts = {name: len(values) for name, values in fields.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{where}: fields disagree on the number of samples: {counts}")
    count = next(iter(counts.values()))
    if count == 0:
        raise ValueError(f"{where} is empty; leave the split out or fill it")
    return count


def _numbers(value: Any, where: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where} is ragged or not numeric; every sample needs the same shape") from error
