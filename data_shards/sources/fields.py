"""The fields of one split of a feature pickle, each checked for what it should be; errors say where and what."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.sources.conversions import finite, to_emotions, to_id, to_label

SENTIMENT_FIELDS = ("regression_labels", "labels")
CLASS_FIELD = "classification_labels"
EMOTION_FIELDS = ("emotions", "labels", CLASS_FIELD)
_BLOCK = 256


class Rows:
    """The arrays of all samples of one modality: one [N, T, D] array, or a list of [T, D] arrays of one shape."""

    def __init__(self, values: Any, where: str) -> None:
        self._values = values
        if not len(values):
            raise ValueError(f"{where} is empty; leave the split out or fill it")
        first = values[0]
        if not isinstance(values, np.ndarray) or values.dtype.kind == "O":
            self._values = [_numbers(value, f"{where} of sample {number}") for number, value in enumerate(values)]
            first = self._values[0]
            other = next((i for i, array in enumerate(self._values) if array.shape != first.shape), None)
            if other is not None:
                raise ValueError(
                    f"{where} is ragged: sample 0 has shape {first.shape}, sample {other} {self._values[other].shape}; "
                    "pad all samples to one shape"
                )
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

    def nonfinite(self, release: Callable[[], None], used: NDArray[np.bool_] | None = None) -> tuple[int, int]:
        """How many values are NaN or infinite, and the first sample that has one (-1: none).

        Args:
            release: called after each block of samples; it may free the memory that reading arrays of a file took.
            used: which samples are looked at [N]; None: all.
        """
        total, first = 0, -1
        for start in range(0, len(self), _BLOCK):
            bad = ~finite(np.asarray(self._values[start : start + _BLOCK]))
            if used is not None:
                bad[~used[start : start + _BLOCK]] = False
            if bad.any():
                rows = bad.reshape(len(bad), -1).sum(axis=1)
                first = start + int(np.argmax(rows > 0)) if first < 0 else first
                total += int(rows.sum())
            release()
        return total, first


def column(fields: dict[str, Any], name: str, where: str, hint: str = "") -> Any:
    """A field with one entry per sample; `hint` ends the error where it is not there."""
    values = fields.get(name)
    if values is None and name in fields:
        raise ValueError(f"{where}: {name} is None; give one entry per sample, or leave it out{hint}")
    if values is None:
        raise ValueError(f"{where} lacks {name}; it has {', '.join(map(str, fields))}{hint}")
    scalar = isinstance(values, np.ndarray) and values.ndim == 0
    if scalar or not hasattr(values, "__len__") or isinstance(values, (str, bytes, dict)):
        raise ValueError(f"{where}: {name} is a {type(values).__name__}; it must hold one entry per sample")
    return values


def ids(fields: dict[str, Any], where: str, *, needed: bool = True, hint: str = "") -> list[str]:
    """The id of each sample; a missing one is empty where it is not `needed`."""
    given = column(fields, "id", where, hint)
    return [to_id(value, f"{where} sample {number}", needed=needed) for number, value in enumerate(given)]


def rows(fields: dict[str, Any], name: str, where: str) -> Rows:
    """A modality's arrays."""
    return Rows(column(fields, name, where), f"{where}: {name}")


def label_field(fields: dict[str, Any], where: str, *, classes: bool) -> str:
    """The field that holds the labels: sentiments, or with `classes` class numbers."""
    tried = (CLASS_FIELD, *SENTIMENT_FIELDS) if classes else SENTIMENT_FIELDS
    name = _first_there(fields, tried)
    if name is None:
        hint = "; class numbers alone are taken with --classes" if CLASS_FIELD in fields else ""
        raise ValueError(f"{where} lacks {tried[0]} (or labels); it has {', '.join(map(str, fields))}{hint}")
    return name


def emotion_field(fields: dict[str, Any], where: str) -> str:
    """The field that holds the emotions."""
    name = _first_there(fields, EMOTION_FIELDS)
    if name is None:
        raise ValueError(f"{where} lacks {' or '.join(EMOTION_FIELDS)}; it has {', '.join(map(str, fields))}")
    return name


def sentiment_field(fields: dict[str, Any], *, beside: str) -> str | None:
    """The field that holds sentiments beside the emotions in field `beside`; None where there is none."""
    return _first_there(fields, [name for name in SENTIMENT_FIELDS if name != beside])


def labels(
    fields: dict[str, Any], name: str, where: str, *, classes: bool = False, class_names: Sequence[str] = ()
) -> NDArray[np.float64]:
    """One number per sample: a field [N], [N, 1] or [N, 1, 1], of numbers or of `class_names`; with `classes` also
    [N, C], one-hot."""
    numbers = _label_numbers(fields, name, where, class_names)
    if numbers.size == len(numbers):
        return numbers.reshape(-1)
    if classes and numbers.ndim == 2 and np.isin(numbers, (0, 1)).all() and (numbers.sum(axis=1) == 1).all():
        return numbers.argmax(axis=1).astype(np.float64)
    raise ValueError(
        f"{where}: {name} has shape {numbers.shape}, several labels per sample; give one per sample (of one-hot [N, C] "
        "--classes takes the class; several emotions at once are named with --emotions)"
    )


def emotions(fields: dict[str, Any], name: str, where: str, names: Sequence[str]) -> NDArray[np.uint8]:
    """The emotions of each sample [N, L], of a field [N, L] of numbers (above 0: present), with axes of one entry too.

    A field [N, L, 2] has each emotion as one of (1, 0), absent, and (0, 1), present, as MulT's pickle of IEMOCAP.
    """
    numbers = _label_numbers(fields, name, where, ())
    shape = (len(numbers), len(names))
    pairs = numbers.shape == (*shape, 2) and np.isin(numbers, (0, 1)).all() and (numbers.sum(axis=2) == 1).all()
    if not pairs and numbers.size != len(numbers) * len(names):
        raise ValueError(
            f"{where}: {name} has shape {numbers.shape}, but --emotions has {len(names)} names: {', '.join(names)}; "
            "name each column, in their order"
        )
    flags = numbers[..., 1] if pairs else numbers.reshape(shape)
    return np.array([to_emotions(row, names, f"{where}: {name} of sample {i}") for i, row in enumerate(flags)])


def classes(fields: dict[str, Any], where: str, class_names: Sequence[str] = ()) -> NDArray[np.int64]:
    """The class number of each sample, as `classification_labels` [N], [N, 1] or one-hot [N, C]."""
    numbers = labels(fields, CLASS_FIELD, where, classes=True, class_names=class_names)
    if not np.array_equal(numbers, np.floor(numbers)):
        raise ValueError(
            f"{where}: classification_labels are not whole numbers; number the classes, or leave out --class-labels"
        )
    return numbers.astype(np.int64)


def lengths(given: Any, *, steps: NDArray[np.int64], where: str) -> NDArray[np.int64]:
    """Unpadded steps of each sample, at most the `steps` [N] of its array; all of them where none are given."""
    if given is None:
        return steps
    count = len(steps)
    numbers = np.asarray(given).reshape(-1)
    if numbers.shape != (count,) or numbers.dtype.kind not in "iuf":
        raise ValueError(f"{where} needs one number per sample, {count} in all")
    wrong = np.flatnonzero(~((numbers >= 0) & (numbers <= steps) & (numbers == np.floor(numbers))))
    if len(wrong):
        raise ValueError(
            f"{where} of sample {wrong[0]} is {numbers[wrong[0]]}, but the array has {steps[wrong[0]]} steps; give a "
            f"whole number from 0 to {steps[wrong[0]]}"
        )
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


def _first_there(fields: dict[str, Any], names: Sequence[str]) -> str | None:
    """The first of the names that a field has that is not None."""
    return next((name for name in names if name in fields and fields.get(name) is not None), None)


def _label_numbers(fields: dict[str, Any], name: str, where: str, class_names: Sequence[str]) -> NDArray[np.float64]:
    """A field as numbers [N, ...]."""
    given = column(fields, name, where)
    try:
        values = np.asarray(given)
        if values.dtype.kind in "biuf":
            return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name} are not numbers, or not equally many for all samples") from error
    if values.dtype.kind not in "USO":
        raise ValueError(f"{where}: {name} are {values.dtype}; give one plain number per sample")
    each = max(1, values.size // max(1, len(values)))
    flat = values.reshape(-1).tolist()
    try:
        numbers = [to_label(value, class_names, f"that of sample {i // each}") for i, value in enumerate(flat)]
    except ValueError as error:
        raise ValueError(f"{where}: {name} are not numbers: {error}") from error
    return np.array(numbers, dtype=np.float64).reshape(values.shape)


def _numbers(value: Any, where: str) -> NDArray[Any]:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{where} is ragged or not numeric; give numbers [steps, features]") from error
