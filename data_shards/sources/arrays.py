"""Arrays that a program holds in memory, in the layout of an MMSA pickle, whose source then reads and checks them.

    held = HeldArrays({"train": {"text": [N, T, D], "audio": ..., "vision": ..., "labels": [N], "ids": [N]}, ...})
    source = open_arrays(held, SourceOptions(name="mine"))    # data_shards.sources.detect

Sequences may have lengths of their own: a modality is one array [N, T, D], or N arrays [T, D] of any T, which get zeros
behind their last step up to the longest of all splits, and their lengths beside them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.format.padding import pad_steps
from data_shards.format.schema import MODALITIES
from data_shards.sources.fields import CLASS_FIELD
from data_shards.sources.splits import find_splits

FIELDS = {"ids": "id", "classes": CLASS_FIELD}
"""What a field may be called here -> what MMSA calls it."""
TOKENS = "text_bert"
_TOKEN_ROWS = 3


class HeldArrays:
    """Stands for an open pickle (`data_shards.safe_pickle.load.Pickle`) whose content is in memory."""

    memory = 0
    """Bytes that reading takes beside what the program holds."""

    def __init__(self, splits: Mapping[str, Mapping[str, Any]], where: str = "arrays") -> None:
        """Lay them out.

        Args:
            splits: {split, by any of its names: {field: one entry per sample}}. Fields are those of an MMSA pickle, or
                `ids` and `classes`; `text` of whole numbers [N, 3, T] are token ids, mask and token types.
            where: what errors call them.

        Raises:
            ValueError: a split that is no mapping, a field under two names, or sequences that are no arrays [T, D] of
                one D.
        """
        self.where = where
        known = find_splits(splits, where)
        for name in known.values():
            if not isinstance(splits[name], Mapping):
                kind = type(splits[name]).__name__
                raise ValueError(f"{where}: {name} is a {kind}; give a mapping of text, audio, vision, labels and ids")
        fields = {name: _named(splits[name], f"{where}: {name}") for name in known.values()}
        for modality in (*MODALITIES, TOKENS):
            _equal_steps({name: given for name, given in fields.items() if modality in given}, modality, where)
        self.value: dict[str, Any] = {**{str(name): value for name, value in splits.items()}, **fields}

    @property
    def have_ids(self) -> bool:
        """Whether a split gives ids."""
        return any("id" in fields for fields in self.value.values() if isinstance(fields, Mapping))

    @property
    def have_classes(self) -> bool:
        """Whether a split gives class numbers under their own name."""
        return any(CLASS_FIELD in fields for fields in self.value.values() if isinstance(fields, Mapping))

    def release(self) -> None:
        """Nothing: the program holds the arrays."""


def _named(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a split under MMSA's names; tokens under theirs."""
    named: dict[str, Any] = {}
    for field, values in given.items():
        name = FIELDS.get(field, field)
        if name == "text" and _are_tokens(values):
            name = TOKENS
        if name in named:
            raise ValueError(f"{where} has {name} twice, as {field} too; leave one")
        named[name] = values
    return named


def _are_tokens(values: Any) -> bool:
    """Whether a text is token ids: whole numbers [N, 3, T], or N arrays [3, T]."""
    first = np.asarray(values[0]) if isinstance(values, Sequence | np.ndarray) and len(values) else None
    return first is not None and first.ndim == 2 and first.dtype.kind in "iu" and len(first) == _TOKEN_ROWS


def _equal_steps(splits: Mapping[str, dict[str, Any]], modality: str, where: str) -> None:
    """Give the sequences of a modality as many steps in every split, and note how many each has."""
    axis = 1 if modality == TOKENS else 0
    sequences = {name: fields[modality] for name, fields in splits.items()}
    if all(_is_block(values) for values in sequences.values()) and len({v.shape[1:] for v in sequences.values()}) < 2:
        return
    parts = {name: _sequences(values, f"{where}: {name}: {modality}") for name, values in sequences.items()}
    longest = max((array.shape[axis] for arrays in parts.values() for array in arrays), default=0)
    for name, arrays in parts.items():
        fields = splits[name]
        if not arrays:
            continue  # which the source rejects
        if modality == TOKENS:  # their mask says how many they are
            fields[modality] = np.array([np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for array in arrays])
        elif len({array.shape[1] for array in arrays}) == 1:
            fields.setdefault(f"{modality}_lengths", [len(array) for array in arrays])
            fields[modality] = np.stack([pad_steps(array, longest) for array in arrays])
        else:
            raise ValueError(
                f"{where}: {name}: {modality} has samples of {sorted({array.shape[1] for array in arrays})} features; "
                "give every step the same number of them"
            )


def _is_block(values: Any) -> bool:
    """Whether a modality is one array of all samples."""
    return isinstance(values, np.ndarray) and values.ndim == 3


def _sequences(values: Any, where: str) -> list[NDArray[Any]]:
    """The array of each sample."""
    if not isinstance(values, Sequence | np.ndarray):
        raise ValueError(f"{where} is a {type(values).__name__}; give an array [samples, steps, features], or a list")
    arrays = []
    for number, value in enumerate(values):
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{where} of sample {number} is ragged; give numbers [steps, features]") from error
        if array.ndim != 2 or array.dtype.kind not in "iuf" or 0 in array.shape:
            raise ValueError(
                f"{where} of sample {number} is {array.dtype} of shape {list(array.shape)}; give numbers "
                "[steps, features]"
            )
        arrays.append(array)
    return arrays
