"""What a source is, and the small conversions that sources share."""

from collections.abc import Iterator, Sequence
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
        """Samples `start` to `stop` of a split, one at a time."""


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


def to_features(array: NDArray[Any]) -> NDArray[np.float32]:
    """A float32 copy of one sample's features, so that the source's own array may be read-only or of any float type."""
    return np.array(array, dtype=np.float32)


def to_tokens(array: NDArray[Any]) -> NDArray[np.int32]:
    """Token ids, mask and types [3, T] as int32; `ValueError` where a value is no whole number of int32."""
    with np.errstate(invalid="ignore"):
        tokens = array.astype(np.int32)
    if not np.array_equal(tokens, array):
        raise ValueError("text_bert holds values that are not whole numbers")
    return tokens


def count_nonfinite(array: NDArray[Any], *, block: int = 256) -> tuple[int, int]:
    """How many values of [N, ...] are NaN or infinite, and the first sample that has one (-1: none)."""
    total, first = 0, -1
    for start in range(0, len(array), block):
        bad = ~np.isfinite(array[start : start + block])
        if bad.any():
            rows = bad.reshape(len(bad), -1).sum(axis=1)
            first = start + int(np.argmax(rows > 0)) if first < 0 else first
            total += int(rows.sum())
    return total, first


def check_nonfinite(counts: dict[str, tuple[int, str]]) -> None:
    """Refuse non-finite values; `counts` maps a name like `train/audio` to (how many, the first sample's id)."""
    found = [f"{name} {count} (first in {first})" for name, (count, first) in counts.items() if count]
    if found:
        raise ValueError(f"non-finite values: {', '.join(found)}; repair them, or zero them with --nonfinite zero")


def same_lengths(fields: dict[str, Sequence[Any] | NDArray[Any]], where: str) -> int:
    """The common number of samples of a split's fields; `ValueError` where they differ or there is none."""
    counts = {name: len(values) for name, values in fields.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"{where}: fields disagree on the number of samples: {counts}")
    count = next(iter(counts.values()))
    if count == 0:
        raise ValueError(f"{where} is empty; leave the split out or fill it")
    return count
