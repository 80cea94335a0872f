"""Features of a user's as the arrays that a model reads, whatever their length; what that took is counted.

fitter = InputFitter(card.data, text_encoder=None)
inputs = fitter.fit({"text": text, "audio": audio, "vision": None}, "new.pkl: ")
fitter.warnings()                     # a line for each kind of change

A shorter sequence gets zeros behind its last step, as `dmd shard` pads; tokens get masked padding. A longer one loses
its last steps. A modality that is missing is what `dmd missing` makes of it: zeros, for tokens behind the text encoder.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.sources.conversions import finite, is_missing, to_tokens
from data_shards.sources.fields import lengths as lengths_of
from data_shards.sources.mmsa import Nonfinite
from data_shards.text.word_vectors import name_words
from dmd.model.config import MODALITIES

Arrays = dict[str, Tensor]
_Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """N samples as a model reads them."""

    arrays: Arrays
    """{modality: [N, T, D] float32}; token ids are [N, 3, T] int64."""
    text_mask: Tensor | None = None
    """[N, 1, 1], 0 for a sample without tokens, whose text is zeros behind the text encoder; None: all have some."""

    def __len__(self) -> int:
        return len(self.arrays["audio"])

    def pick(self, rows: slice | list[int]) -> "Inputs":
        """Some of the samples."""
        mask = self.text_mask
        return Inputs(
            arrays={m: array[rows] for m, array in self.arrays.items()},
            text_mask=None if mask is None else mask[rows],
        )


class InputFitter:
    """Makes inputs for one model, and counts over all calls what that took."""

    def __init__(
        self, data: Mapping[str, Any], *, text_encoder: Mapping[str, Any] | None, nonfinite: Nonfinite = "refuse"
    ) -> None:
        """Nothing is read yet.

        Args:
            data: `text_kind`, `dims` and `lengths` of a model's card.
            text_encoder: configuration of its text encoder.
            nonfinite: whether NaN, infinities and what is beyond float32 are an error, or become 0.
        """
        self._lengths = {m: int(data["lengths"][m]) for m in MODALITIES}
        self._dims = {m: int(data["dims"][m]) for m in MODALITIES}
        self._has_tokens = data["text_kind"] == "tokens"
        settings = text_encoder or {}
        self._vocab_size = int(settings.get("vocab_size") or 0)
        """Token ids that the text encoder knows; 0: it does not say."""
        self._padding = int(settings.get("pad_token_id") or 0)
        """Token id of padded steps."""
        self._zero = nonfinite == "zero"
        self._samples: Counter[str] = Counter()
        """By place, samples in all; the others are counts by place and modality."""
        self._missing: Counter[tuple[str, str]] = Counter()
        self._cut: Counter[tuple[str, str]] = Counter()
        self._cut_steps: Counter[tuple[str, str]] = Counter()
        self._zeroed: Counter[tuple[str, str]] = Counter()
        self._words: Counter[str] = Counter()
        """By place, words in all, where text is made of transcripts."""
        self._unlabelled: Counter[str] = Counter()
        self._unknown_words: dict[str, Counter[str]] = {}

    def fit(self, given: Mapping[str, Any], where: str = "", *, lengths: Mapping[str, Any] | None = None) -> Inputs:
        """Samples of any length; one alone needs no first axis.

        Args:
            given: {modality: [N, T, D], or N arrays [T, D] of any T}, token ids [N, 3, T], or N arrays [3, T]. A
                modality is missing that is not there or None; of a sample, one that is None or has no step.
            where: what errors and warnings begin with.
            lengths: {field: (modality, unpadded steps [N])}, which are looked at; a model sees padding itself.

        Raises:
            ValueError: other features than those of the training, no sample, different numbers of samples, values that
                are not finite, or lengths that no array has.
        """
        samples = {m: _samples(given[m], f"{where}{m}") for m in MODALITIES if given.get(m) is not None}
        counts = {m: len(values) for m, values in samples.items()}
        if not samples:
            raise ValueError(f"{where}text, audio and vision are all missing; give one of them at least")
        if len(set(counts.values())) > 1 or not max(counts.values()):
            raise ValueError(f"{where}the modalities hold {counts} samples; give equally many, at least one")
        for name, (modality, steps) in (lengths or {}).items():
            is_tokens = modality == "text" and self._has_tokens
            _check_lengths(steps, samples.get(modality), f"{where}{name}", is_tokens=is_tokens)
        count = max(counts.values())
        self._samples[where] += count
        arrays = {m: self._fit_modality(m, samples.get(m, [None] * count), where) for m in MODALITIES}
        there = torch.tensor([array is not None for array in samples.get("text", [None] * count)])
        masked = self._has_tokens and not there.all()
        return Inputs(
            arrays={m: torch.from_numpy(array) for m, array in arrays.items()},
            text_mask=there.float()[:, None, None] if masked else None,
        )

    def count_unlabelled(self, where: str, count: int) -> None:
        """Count samples that have no label; `where` is what warnings begin with."""
        self._unlabelled[where] += count

    def count_cut(self, place: tuple[str, str], steps: int) -> None:
        """Count steps that a sample loses; `place` is what warnings begin with, and the modality."""
        self._cut[place] += 1
        self._cut_steps[place] += steps

    def count_unknown(self, where: str, unknown: Counter[str], words: int) -> None:
        """Count words of which no vector or token is known, of all words; `where` is what warnings begin with."""
        self._unknown_words.setdefault(where, Counter()).update(unknown)
        self._words[where] += words

    def warnings(self) -> list[str]:
        """What was changed, one line for each place, modality and kind of change."""
        lines = []
        for (where, modality), count in self._missing.items():
            lines.append(
                f"{where}{modality} is missing in {count} of {self._samples[where]} samples; they are predicted "
                "without it, as `dmd missing` does"
            )
        for (where, modality), count in self._cut.items():
            lines.append(
                f"{where}{modality} of {count} of {self._samples[where]} samples is longer than the "
                f"{self._lengths[modality]} steps of the training; {self._cut_steps[where, modality]} steps were cut"
            )
        of_unknown = "are unknown tokens" if self._has_tokens else "have no vector and are zeros"
        for where, unknown in self._unknown_words.items():
            if unknown:
                count, total = unknown.total(), self._words[where]
                lines.append(f"{where}{count} of {total} words {of_unknown}, as in `dmd shard`: {name_words(unknown)}")
        for where, count in self._unlabelled.items():
            if 0 < count < self._samples[where]:
                lines.append(f"{where}{count} of {self._samples[where]} samples have no label")
        for (where, modality), count in self._zeroed.items():
            lines.append(f"{where}{count} values of {modality} that are not finite became 0")
        return lines

    def _fit_modality(self, modality: str, samples: "list[_Array | None]", where: str) -> _Array:
        """[N, T, D], or token ids [N, 3, T]."""
        place = (where, modality)
        lost = sum(array is None for array in samples)
        if lost:
            self._missing[place] += lost
        there = [array for array in samples if array is not None]
        tokens = modality == "text" and self._has_tokens
        self._check_width(modality, there, f"{where}{modality}")
        fit: Callable[[_Array, tuple[str, str]], _Array] = self._fit_tokens if tokens else self._fit_features
        if not tokens:
            self._check_finite(there, place)
        shape = (3, self._lengths["text"]) if tokens else (self._lengths[modality], self._dims[modality])
        whole = np.zeros((len(samples), *shape), np.int64 if tokens else np.float32)
        if tokens:
            whole[:, 0] = self._padding
        for row, array in enumerate(samples):
            if array is not None:
                fitted = fit(array, place)
                whole[row][tuple(map(slice, fitted.shape))] = fitted
            elif tokens:
                whole[row, 1, 0] = 1  # an encoder must see a token; what it makes of it is not used
        return whole

    def _check_width(self, modality: str, arrays: list[_Array], what: str) -> None:
        tokens = modality == "text" and self._has_tokens
        for array in arrays:
            if tokens and len(array) != 3:
                raise ValueError(
                    f"{what} has shape {list(array.shape)} per sample, the model was trained on token ids [3, steps] "
                    "(ids, attention mask, token types); give the tokens that it was trained on"
                )
            if not tokens and array.shape[1] != self._dims[modality]:
                raise ValueError(
                    f"{what} has {array.shape[1]} features per step, the model was trained on {self._dims[modality]}; "
                    "give the features that it was trained on"
                )

    def _check_finite(self, arrays: list[_Array], place: tuple[str, str]) -> None:
        count = sum(int(array.size - finite(array).sum()) for array in arrays)
        if count and not self._zero:
            raise ValueError(
                f"{''.join(place)} holds {count} values that are not finite; repair them, or zero them: "
                '--nonfinite zero, predict(..., nonfinite="zero")'
            )
        if count:
            self._zeroed[place] += count

    def _fit_features(self, array: _Array, place: tuple[str, str]) -> _Array:
        """[at most T, D]"""
        steps = self._lengths[place[1]]
        cut = np.flatnonzero((array[steps:] != 0).any(1))
        if len(cut):  # frames of zeros are padding
            self.count_cut(place, int(cut[-1]) + 1)
        with np.errstate(over="ignore"):
            kept = array[:steps].astype(np.float32)
        return np.nan_to_num(kept, nan=0.0, posinf=0.0, neginf=0.0) if self._zero else kept

    def _fit_tokens(self, array: _Array, place: tuple[str, str]) -> _Array:
        """[3, at most T]; of a longer text the last token, which ends it, stays the last."""
        tokens, steps = to_tokens(array), self._lengths["text"]
        known = self._vocab_size
        if tokens.min() < 0 or (known and tokens[0].max() >= known):
            wrong = tokens.min() if tokens.min() < 0 else tokens[0].max()
            raise ValueError(
                f"{''.join(place)} holds the token id {wrong}, the text encoder of the model knows 0 to {known - 1}; "
                "make the tokens with its own tokenizer"
            )
        length = int(np.flatnonzero(tokens[1]).max(initial=-1)) + 1
        if length <= steps:
            return tokens[:, :steps]
        self.count_cut(place, length - steps)
        return np.concatenate([tokens[:, : steps - 1], tokens[:, length - 1 : length]], axis=1)


def _samples(values: Any, what: str) -> list[_Array | None]:
    """The array of each sample, [T, D] or [3, T]; None for one without any step."""
    if isinstance(values, Tensor):
        values = _numbers(values, what)
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.dtype.kind != "O":
        values = [values]
    if not isinstance(values, list | tuple | np.ndarray) or getattr(values, "shape", None) == ():
        raise ValueError(f"{what} is a {type(values).__name__}; give an array [samples, steps, features]")
    entries: list[_Array | None] = [None if value is None else _numbers(value, what) for value in values]
    known = [entry for entry in entries if entry is not None and entry.size]
    if known and all(entry.ndim == 1 for entry in known) and len(known) == len(entries):
        known = [_numbers(known, what)]  # the steps of one sample
        entries = [*known]
    wrong = next((entry for entry in known if entry.ndim != 2 or entry.dtype.kind not in "iuf"), None)
    if wrong is not None:
        raise ValueError(
            f"{what} has {wrong.dtype} of shape {list(wrong.shape)} per sample; give numbers [steps, features]"
        )
    return [entry if entry is not None and entry.size else None for entry in entries]


def _check_lengths(lengths: Any, samples: "list[_Array | None] | None", where: str, *, is_tokens: bool) -> None:
    """Raise ValueError for lengths that `dmd shard` rejects; what has no array may have none."""
    if samples is None:
        return
    steps = np.array([0 if array is None else array.shape[1 if is_tokens else 0] for array in samples])
    listed = lengths.tolist() if isinstance(lengths, np.ndarray) else lengths
    given = listed if isinstance(listed, list | tuple) and len(listed) == len(steps) else [listed]
    lengths_of(
        [0 if is_missing(length) and not most else length for length, most in zip(given, steps, strict=False)],
        steps=steps,
        where=where,
    )


def _numbers(value: Any, what: str) -> _Array:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()  # numpy has no bfloat16
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what} is ragged in its features; give every step the same number of them") from error
