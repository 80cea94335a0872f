"""What a source is, and the small conversions that sources share."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_shards.schema import Sample


class Source(Protocol):
    """Samples of one data set, readable in any order, so that several processes can each write their own shards."""

    @property
    def name(self) -> str:
        """The data set's name."""

    def counts(self) -> dict[str, int]:
        """Samples per split, for the splits that exist; `ValueError` where the data cannot be read as samples."""

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split, one at a time, none kept."""


def finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values of an array are finite as float32: what is beyond its range becomes infinite when it is stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(array.astype(np.float32, copy=False))


def to_text(value: object) -> str:
    """A text or id as `str`: bytes are decoded, a list such as MulT's [video, start, stop] is joined with `$_$`."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return "$_$".join(to_text(part) for part in value)
    if isinstance(value, (int, float, np.generic)):
        return str(value)
    raise ValueError(f"{value!r:.60} is neither a text nor a number")


def to_features(array: object, *, zero: bool = False, steps: int = 0) -> NDArray[np.float32]:
    """One sample's features as a new float32 array [T, D].

    Args:
        array: numbers of any type.
        zero: replace NaN and infinities by 0.
        steps: fill up with zero rows to this many steps.

    Raises:
        ValueError: not numbers in a rectangle.
    """
    values = np.asarray(array)
    if values.dtype.kind not in "iuf" or values.ndim != 2:
        raise ValueError(f"features are {values.dtype} {values.shape}; they must be numbers [steps, features]")
    with np.errstate(over="ignore"):
        features = np.array(values, dtype=np.float32)
    if zero:
        np.nan_to_num(features, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return pad_steps(features, steps) if steps > len(features) else features


def to_tokens(array: NDArray[Any]) -> NDArray[np.int32]:
    """Token ids, mask and types [3, T] as int32; `ValueError` where a value is no whole number of int32."""
    with np.errstate(invalid="ignore"):
        tokens = array.astype(np.int32)
    if not np.array_equal(tokens, array):
        raise ValueError("text_bert holds values that are not whole numbers")
    return tokens


def pad_steps(array: NDArray[Any], steps: int) -> NDArray[Any]:
    """[T, D] with zero rows appended up to `steps`."""
    padded = np.zeros((steps, *array.shape[1:]), dtype=array.dtype)
    padded[: len(array)] = array
    return padded


def check_nonfinite(counts: dict[str, tuple[int, str]], where: str) -> None:
    """Refuse non-finite values of a file; `counts` maps a name like `train/audio` to (how many, first sample's id)."""
    found = [f"{name} {count} (first in {first})" for name, (count, first) in counts.items() if count]
    if found:
        raise ValueError(
            f"{where}: non-finite values (NaN, infinite, or beyond float32): {', '.join(found)}; repair them, or zero "
            "them with --nonfinite zero"
        )
