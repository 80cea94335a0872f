"""Conversions that sources share: from texts, ids, numbers, features and tokens of a file to those of a `Sample`."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.format.padding import pad_steps

NO_TEXT = np.zeros((3, 0), dtype=np.int32)
"""Of a sample whose text is made of `raw_text` later."""
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+\s*")
"""A number such as 0,5."""


def finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values of an array are finite as float32: what is beyond its range becomes infinite when it is stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(array.astype(np.float32, copy=False))


def to_text(value: object) -> str:
    """A text or id as `str`. Bytes are decoded (what is no UTF-8 becomes an escape such as `\\xff`); a list such as
    MulT's [video, start, stop] is joined with `$_$`."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="backslashreplace")
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        return "$_$".join(to_text(part) for part in value)
    if isinstance(value, (int, float, np.generic)):
        return str(value)
    raise ValueError(f"{value!r:.60} is neither a text nor a number")


def is_missing(value: object) -> bool:
    """Whether a value is missing: null, or NaN, which tables use for it."""
    return value is None or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))


def to_raw_text(value: object) -> str:
    """A sentence as `str`; empty where there is none."""
    return "" if is_missing(value) else to_text(value)


def to_id(value: object, where: str, *, needed: bool = True) -> str:
    """A sample's id as `str`; a missing one is empty where it is not `needed`. `where` is what errors call the sample.

    Raises:
        ValueError: no id, or what is neither a text nor a number.
    """
    if is_missing(value) and needed:
        raise ValueError(f"{where} has no id ({value}); give every sample one, or number them with --ids number")
    try:
        return to_raw_text(value)
    except ValueError as error:
        raise ValueError(f"{where}: the id {error}; give every sample a text or a number") from error


def to_number(value: object, what: str) -> float:
    """A number, or a text that spells one, as float; NaN for null. A text may have a decimal comma.

    Raises:
        ValueError: no number.
    """
    if isinstance(value, str | bytes) and (spelled := DECIMAL_COMMA.fullmatch(to_text(value).strip())):
        value = spelled[0].replace(",", ".")
    try:
        return math.nan if value is None else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{what} {value!r:.60} is not a number") from error


def to_count(value: object, what: str) -> int:
    """A whole number, as `to_number`."""
    number = to_number(value, what)
    if not number.is_integer():
        raise ValueError(f"{what} {value!r:.60} is not a whole number")
    return int(number)


def to_label(value: object, class_names: Sequence[str], what: str) -> float:
    """A label as a number: of one of `class_names` its place among them.

    Raises:
        ValueError: neither a number nor one of the names.
    """
    written = to_text(value).strip() if isinstance(value, str | bytes) else ""
    if written in class_names:
        return float(class_names.index(written))
    try:
        return to_number(value, what)
    except ValueError as error:
        if not written:
            raise
        known = ", ".join(class_names)
        hint = (
            f"and none of --class-names {known}; add it there, or mend the label"
            if known
            else "; names of classes are declared with `dmd shard --classes --class-names NAME,NAME,...`"
        )
        raise ValueError(f"{error}{' ' if known else ''}{hint}") from error


def to_class(value: object, class_names: Sequence[str], what: str) -> int:
    """A class number, as `to_label`."""
    number = to_label(value, class_names, what)
    if not number.is_integer():
        raise ValueError(f"{what} {value!r:.60} is not a whole number")
    return int(number)


def to_emotions(values: object, names: Sequence[str], what: str) -> NDArray[np.uint8]:
    """The emotions [L] of a sample, 1 for each that it has.

    Args:
        values: a number for each emotion, in the order of `names`, or a dict by name. An emotion is there where its
            number is above 0, such as the intensities 0 to 3 of CMU-MOSEI.
        names: as the user gives them.
        what: what errors call the values.

    Raises:
        ValueError: another number of values than names, another name, a value that is missing, negative or no number.
    """
    if not names:
        raise ValueError(f"{what} have no names; give them with --emotions NAME,NAME,..., in their order")
    if isinstance(values, dict):
        if set(values) != set(names):
            raise ValueError(f"{what} are of {', '.join(map(str, values))}, but --emotions names {', '.join(names)}")
        values = [values[name] for name in names]
    given = np.asarray(values, dtype=object).reshape(-1).tolist() if isinstance(values, Sequence | np.ndarray) else []
    if isinstance(values, str) or len(given) != len(names):
        raise ValueError(
            f"{what} {values!r:.60} are not {len(names)} numbers, one for each name of --emotions {','.join(names)}"
        )
    numbers = np.array([to_number(value, f"{what}: {name}") for value, name in zip(given, names, strict=True)])
    wrong = np.flatnonzero(~(numbers >= 0))
    if len(wrong):
        raise ValueError(
            f"{what}: {names[wrong[0]]} is {numbers[wrong[0]]:g}; give 0 where an emotion is absent and more where it "
            "is present, or leave the sample out"
        )
    return (numbers > 0).astype(np.uint8)


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


def check_nonfinite(counts: dict[str, tuple[int, str]], where: str) -> None:
    """Reject non-finite values of a file; `counts` maps a name like `train/audio` to (how many, first sample's id)."""
    found = [f"{name} {count} (first in {first})" for name, (count, first) in counts.items() if count]
    if found:
        raise ValueError(
            f"{where}: non-finite values (NaN, infinite, or beyond float32): {', '.join(found)}; repair them, or zero "
            "them with --nonfinite zero"
        )
