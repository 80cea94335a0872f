"""MMSA feature pickles: `{split: {id, raw_text, text | text_bert, audio, vision, regression_labels, *_lengths}}`.

Aligned and unaligned files look the same: only their sequence lengths differ. `text` chooses what the shards hold:
`features` the float array `text`, `tokens` the WordPiece array `text_bert`, and `auto` features where the file has
them and tokens otherwise. Where `text_lengths` is absent the attention mask of `text_bert` gives the text's valid
length; a modality without any length counts as full.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_shards import unpickle
from data_shards.schema import MODALITIES, SPLITS, Sample, TextKind, check_kind
from data_shards.sources.base import (
    check_nonfinite,
    count_nonfinite,
    same_lengths,
    to_features,
    to_text,
    to_tokens,
)

TextChoice = Literal["auto", "features", "tokens"]
Nonfinite = Literal["refuse", "zero"]
_LABELS = ("regression_labels", "labels")


class MmsaSource:
    """One MMSA pickle, held in memory; samples are converted one at a time."""

    def __init__(
        self, path: str | Path, *, name: str | None = None, text: TextChoice = "auto", nonfinite: Nonfinite = "refuse"
    ) -> None:
        check_kind(text, TextChoice, "--text")
        check_kind(nonfinite, Nonfinite, "--nonfinite")
        self.name = name or Path(path).stem
        data = unpickle.load(path)
        if not isinstance(data, dict) or not set(SPLITS) & set(data):
            raise ValueError(f"{path} has no split: an MMSA pickle is a dict with train, valid or test")
        present = [split for split in SPLITS if split in data]
        self._splits = {split: _Split(data[split], f"{path}: {split}", text) for split in present}
        self._zero = nonfinite == "zero"
        kinds = {split.text_kind for split in self._splits.values()}
        if len(kinds) > 1:
            raise ValueError(f"{path}: some splits have text features and others only tokens; choose with --text")
        counted = {f"{name}/{m}": split.nonfinite(m) for name, split in self._splits.items() for m in MODALITIES}
        self.nonfinite = {name: count for name, (count, _) in counted.items()}
        """Non-finite values per split and modality, as found (with `zero` they are stored as 0)."""
        if nonfinite == "refuse":
            check_nonfinite(counted)

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return {name: split.count for name, split in self._splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split."""
        for i in range(start, stop):
            yield self._splits[split].sample(split, i, zero=self._zero)


class _Split:
    """The fields of one split, checked to agree with each other."""

    def __init__(self, fields: object, where: str, text: TextChoice) -> None:
        if not isinstance(fields, dict):
            raise ValueError(f"{where} is a {type(fields).__name__}, not a dict of fields")
        self._where, self.text_kind = where, _text_kind(fields, where, text)
        self._ids = _column(fields, "id", where)
        self._raw = fields.get("raw_text")
        self._labels = _labels(fields, where)
        self._arrays = {
            "text": _array(fields, "text_bert" if self.text_kind == "tokens" else "text", where),
            "audio": _array(fields, "audio", where),
            "vision": _array(fields, "vision", where),
        }
        named: dict[str, Sequence[Any] | NDArray[Any]] = {"id": self._ids, "labels": self._labels, **self._arrays}
        self.count = same_lengths(named if self._raw is None else {**named, "raw_text": self._raw}, where)
        if self.text_kind == "tokens" and self._arrays["text"].shape[1] != 3:
            raise ValueError(f"{where}: text_bert has shape {self._arrays['text'].shape}; it must be [N, 3, T]")
        self._lengths = np.stack([self._modality_lengths(fields, m) for m in MODALITIES], axis=1)

    def _steps(self, modality: str) -> int:
        array = self._arrays[modality]
        return int(array.shape[2] if modality == "text" and self.text_kind == "tokens" else array.shape[1])

    def _modality_lengths(self, fields: dict[str, Any], modality: str) -> NDArray[np.int64]:
        given = fields.get(f"{modality}_lengths")
        if given is not None:
            lengths = np.asarray(given).reshape(-1)
            if lengths.shape != (self.count,) or lengths.dtype.kind not in "iuf":
                raise ValueError(f"{self._where}: {modality}_lengths needs one number per sample, {self.count} in all")
            lengths = lengths.astype(np.int64)
        elif modality == "text" and (mask := np.asarray(fields.get("text_bert"))).shape[:2] == (self.count, 3):
            lengths = np.minimum(mask[:, 1].sum(axis=1).astype(np.int64), self._steps("text"))
        else:
            lengths = np.full(self.count, self._steps(modality), dtype=np.int64)
        if lengths.min() < 0 or lengths.max() > self._steps(modality):
            worst = int(np.argmax((lengths < 0) | (lengths > self._steps(modality))))
            raise ValueError(
                f"{self._where}: {modality}_lengths of {to_text(self._ids[worst])} is {lengths[worst]}, "
                f"but the array has {self._steps(modality)} steps"
            )
        return lengths

    def nonfinite(self, modality: str) -> tuple[int, str]:
        """How many values of a modality are not finite, and the id of the first sample that has one."""
        count, first = count_nonfinite(self._arrays[modality])
        return count, to_text(self._ids[first]) if count else ""

    def sample(self, split: str, i: int, *, zero: bool) -> Sample:
        """Sample `i`; with `zero` its non-finite features become 0."""
        arrays = {m: to_features(array[i]) for m, array in self._arrays.items() if m != "text"}
        text = self._arrays["text"][i]
        if self.text_kind == "tokens":
            try:
                arrays["text"] = to_tokens(text)  # type: ignore[assignment]
            except ValueError as error:
                raise ValueError(f"{self._where} sample {to_text(self._ids[i])}: {error}") from error
        else:
            arrays["text"] = to_features(text)
        for array in arrays.values():
            if zero and array.dtype == np.float32:
                np.nan_to_num(array, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        text_length, audio_length, vision_length = (int(length) for length in self._lengths[i])
        return Sample(
            id=to_text(self._ids[i]),
            split=split,
            label=float(self._labels[i]),
            raw_text="" if self._raw is None else to_text(self._raw[i]),
            lengths=(text_length, audio_length, vision_length),
            **arrays,
        )


def _text_kind(fields: dict[str, Any], where: str, text: TextChoice) -> TextKind:
    if text == "auto":
        text = "features" if "text" in fields else "tokens"
    member = "text" if text == "features" else "text_bert"
    if member not in fields:
        raise ValueError(f"{where} lacks {member}; it has {', '.join(map(str, fields))}")
    return text


def _column(fields: dict[str, Any], name: str, where: str) -> Any:
    values = fields.get(name)
    if values is None or not hasattr(values, "__len__") or isinstance(values, (str, bytes, dict)):
        raise ValueError(f"{where} lacks {name}; it has {', '.join(map(str, fields))}")
    return values


def _labels(fields: dict[str, Any], where: str) -> NDArray[np.float64]:
    name = next((name for name in _LABELS if name in fields), None)
    if name is None:
        raise ValueError(f"{where} lacks regression_labels; it has {', '.join(map(str, fields))}")
    try:
        return np.asarray(fields[name], dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {name} are not numbers") from error


def _array(fields: dict[str, Any], name: str, where: str) -> NDArray[Any]:
    values = _column(fields, name, where)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{where}: {name} is ragged or not numeric; every sample needs the same shape") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{where}: {name} is {array.dtype}; it must hold numbers")
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise ValueError(f"{where}: {name} has shape {array.shape}; it must be [samples, steps, features]")
    return array
