"""MMSA feature pickles: `{split: {id, raw_text, text | text_bert, audio, vision, regression_labels, *_lengths}}`.

Aligned and unaligned files look the same: only their sequence lengths differ. MulT's pickles are the same with
`labels` [N, 1, 1] and ids [video, start, stop]. `text` chooses what the shards hold: `features` the float array
`text`, `tokens` the WordPiece array `text_bert`, and `auto` features where the file has them and tokens otherwise;
`transcripts` neither, where text is made of `raw_text` later (`data_shards.text`).
Where `text_lengths` is absent the attention mask of `text_bert` gives the text's unpadded length; a modality without
any length counts as unpadded; in MMSA-FET's aligned output it has the text's. A modality may come from another pickle
of this layout (MMSA's feature_T, feature_A, feature_V): its samples are joined by id, which must be unique on both
sides.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.format.schema import MODALITIES, Sample, TextKind
from data_shards.labels import Labels
from data_shards.safe_pickle.load import Pickle
from data_shards.sources import fields as fields_of
from data_shards.sources.arrays import HeldArrays
from data_shards.sources.conversions import NO_TEXT, check_nonfinite, to_features, to_raw_text, to_tokens
from data_shards.sources.mmsa_fet import clip_fields, drop_empty_splits, is_aligned_by_fet
from data_shards.sources.pickled import Splits

TextChoice = Literal["auto", "features", "tokens", "transcripts"]
Nonfinite = Literal["refuse", "zero"]
AT_ONCE = 64
"""Samples whose arrays are read before their memory is released."""
_BYTES_PER_VALUE = 8


class MmsaSource:
    """MMSA or MulT pickles; arrays stay in the files, samples are converted one at a time."""

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        text: TextChoice = "auto",
        nonfinite: Nonfinite = "refuse",
        others: dict[str, str] | None = None,
        class_labels: bool = False,
        labels: Labels | None = None,
        need_ids: bool = True,
        labelled: bool = True,
        opened: Pickle | HeldArrays | None = None,
        split: str | None = None,
        clip: str | None = None,
        checked: bool = False,
    ) -> None:
        """Open a pickle.

        Args:
            opened: the pickle, where it is open, or arrays in memory.
            labelled: whether labels are read; else they are NaN, for `labelled.LabelledSource`, which needs ids.
            split: the split of a pickle that holds the fields of one.
            clip: the id of the clip whose arrays a pickle holds, as MMSA-FET's `run_single` writes them.
            checked: non-finite values were looked for before, and nothing is known of them here.
            others: modality -> the pickle that it comes from instead.
            class_labels: read `classification_labels` beside the sentiments.
            labels: what is read as labels; None: sentiments. Class numbers or names are in `classification_labels` or
                else `labels`; emotions in `emotions`, `labels` or `classification_labels` [N, L], beside sentiments.
            need_ids: whether a file without ids is an error; else its samples have empty ones.
        """
        self.name = name or Path(path).stem
        self._reopen = partial(
            MmsaSource,
            path,
            name=name,
            text=text,
            nonfinite=nonfinite,
            others=others,
            class_labels=class_labels,
            labels=labels,
            need_ids=need_ids,
            labelled=labelled,
            split=split,
            clip=clip,
            checked=True,
        )
        self._zero = nonfinite == "zero"
        main = opened or Pickle(path)
        other_pickles = {modality: Pickle(other) for modality, other in (others or {}).items()}
        self._pickles: list[Pickle | HeldArrays] = [main, *other_pickles.values()]
        value = main.value if clip is None else clip_fields(main.value, clip)
        splits = Splits(value, str(path), split=split)
        empty = drop_empty_splits(splits, value)
        other_splits = {m: Splits(pickle.value, str((others or {})[m])) for m, pickle in other_pickles.items()}
        choice = _FieldChoice(
            text=text, class_labels=class_labels, labels=labels or Labels(), need_ids=need_ids, labelled=labelled
        )
        self._splits = {split: _Split(splits, split, other_splits, choice) for split in splits}
        self.has_splits = split is None
        """Whether the pickle says which split its samples are of."""
        self.ignored = {**_ignored([splits, *other_splits.values()], self._splits), **empty}
        """What is in the files and not in the samples -> how many entries it has."""
        if len({split.text_kind for split in self._splits.values()}) > 1:
            raise ValueError(f"{path}: some splits have text features and others only tokens; choose with --text")
        bad_values = {
            f"{name}/{m}": fields.nonfinite(m, self._release)
            for name, fields in ({} if checked else self._splits).items()
            for m in fields.arrays
        }
        self.nonfinite = {name: count for name, (count, _) in bad_values.items() if count}
        """Non-finite values per split and modality, as found (with `zero` they are stored as 0)."""
        if not self._zero:
            check_nonfinite(bad_values, str(path))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its path: arrays stay in the file."""
        return self._reopen, ()

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return {name: split.count for name, split in self._splits.items()}

    def ids(self, split: str) -> list[str]:
        """The id of each sample of a split."""
        return self._splits[split].ids

    def memory(self) -> int:
        """Bytes that reading takes at most: what is no array of the pickles, and the arrays of some samples."""
        sizes = (sum(math.prod(rows.shape[1:]) for rows in split.arrays.values()) for split in self._splits.values())
        return sum(pickle.memory for pickle in self._pickles) + _BYTES_PER_VALUE * AT_ONCE * max(sizes)

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split."""
        for i in range(start, stop):
            yield self._splits[split].sample(i, zero=self._zero)
            if i % AT_ONCE == 0:
                self._release()
        self._release()

    def _release(self) -> None:
        for pickle in self._pickles:
            pickle.release()


@dataclass(frozen=True, kw_only=True)
class _FieldChoice:
    """Which fields samples are made from; see `MmsaSource`."""

    text: TextChoice
    class_labels: bool
    labels: Labels
    need_ids: bool
    labelled: bool


@dataclass(frozen=True)
class _Place:
    """The fields that hold a modality, and what errors call them."""

    fields: dict[str, Any]
    where: str


class _Split:
    """The fields of one split, checked to agree with each other."""

    def __init__(self, splits: Splits, split: str, others: dict[str, Splits], choice: _FieldChoice) -> None:
        """Read them.

        Args:
            splits: of the main file.
            others: modality -> the file that it comes from instead.
        """
        main = _Place(splits[split], f"{splits.path}: {split}")
        self._split = split
        self._where = main.where
        self._others = frozenset(others)
        self._read_main(main, choice)
        places = dict.fromkeys(MODALITIES, main)
        places |= {m: _Place(other.fields(split), f"{other.path}: {split}") for m, other in others.items()}
        self.text_kind = _text_kind(places["text"], choice.text)
        names = {m: m for m in MODALITIES if m != "text" or self.text_kind is not None}
        if self.text_kind == "tokens":
            names["text"] = "text_bert"
        self.arrays = {m: fields_of.rows(places[m].fields, name, places[m].where) for m, name in names.items()}
        """Of the modalities that are read."""
        self.count = self._count_samples()
        self._order = {m: self._join(m, places[m]) for m in others}
        """Modality of another file -> for each sample its row there [N]."""
        if self.text_kind == "tokens" and self.arrays["text"].shape[1] != 3:
            shape = self.arrays["text"].shape
            raise ValueError(f"{self._where}: text_bert has shape {shape}; it must be [N, 3, T]")
        self._lengths = {m: self._modality_lengths(m, places[m]) for m in self.arrays}
        self.unjoined = {places[m].where: len(self.arrays[m]) - self.count for m in others}
        """By file and split, the samples of other files that no sample here is joined with."""

    def _read_main(self, main: _Place, choice: _FieldChoice) -> None:
        """Read what only the main file gives: sentences, labels and ids."""
        fields, where = main.fields, main.where
        self._raw = None if fields.get("raw_text") is None else fields_of.column(fields, "raw_text", where)
        self._emotions: NDArray[np.uint8] | None = None
        self._classes: NDArray[np.int64] | None = None
        if not choice.labelled:
            self.ids = fields_of.ids(fields, where, hint="; labels of a file are joined by id")
            self._labels = np.full(len(self.ids), np.nan)
            return
        self._read_labels(fields, where, choice)
        self.ids = [""] * len(self._labels)
        if choice.need_ids or "id" in fields or self._others:
            hint = "" if self._others else "; without ids, number the samples with --ids number"
            self.ids = fields_of.ids(fields, where, needed=choice.need_ids and not self._others, hint=hint)

    def _read_labels(self, fields: dict[str, Any], where: str, choice: _FieldChoice) -> None:
        """Read sentiments or class numbers [N], and what is kept beside or instead of them."""
        declared, by_class = choice.labels, choice.labels.kind != "sentiments"
        label_field: str | None
        if declared.emotions:
            emotion_field = fields_of.emotion_field(fields, where)
            self._emotions = fields_of.emotions(fields, emotion_field, where, declared.emotions)
            label_field = fields_of.sentiment_field(fields, beside=emotion_field)
        else:
            label_field = fields_of.label_field(fields, where, classes=by_class)
        if label_field is None:
            assert self._emotions is not None
            self._labels = np.full(len(self._emotions), np.nan)
        else:
            self._labels = fields_of.labels(
                fields, label_field, where, classes=by_class, class_names=declared.label_names
            )
        if choice.class_labels:
            self._classes = fields_of.classes(fields, where, declared.class_names)

    def _count_samples(self) -> int:
        """The number of samples, which all fields of the main file must have."""
        fields: dict[str, Any] = {"id": self.ids, "labels": self._labels}
        if self._emotions is not None:
            fields["emotions"] = self._emotions
        if self._raw is not None:
            fields["raw_text"] = self._raw
        if self._classes is not None:
            fields["classification_labels"] = self._classes
        fields |= {m: array for m, array in self.arrays.items() if m not in self._others}
        return fields_of.same_count(fields, self._where)

    def nonfinite(self, modality: str, release: Callable[[], None]) -> tuple[int, str]:
        """How many values of a modality are not finite, and the id of the first sample that has one."""
        if modality == "text" and self.text_kind == "tokens":
            return 0, ""
        order, used = self._order.get(modality), None
        if order is not None:
            used = np.zeros(len(self.arrays[modality]), dtype=np.bool_)
            used[order] = True
        count, first = self.arrays[modality].nonfinite(release, used)
        if count and order is not None:
            first = int(np.argmax(order == first))
        return count, self.ids[first] if count else ""

    def sample(self, i: int, *, zero: bool) -> Sample:
        """Sample `i`; with `zero` its non-finite features become 0."""
        rows = {m: int(self._order[m][i]) if m in self._order else i for m in self.arrays}
        arrays: dict[str, Any] = {"text": NO_TEXT}
        for m in self.arrays:
            array = self.arrays[m][rows[m]]
            try:
                tokens = m == "text" and self.text_kind == "tokens"
                arrays[m] = to_tokens(array) if tokens else to_features(array, zero=zero)
            except ValueError as error:
                raise ValueError(f"{self._where} sample {self.ids[i]!r}: {m}: {error}") from error
        lengths = {"text": 0} | {m: int(self._lengths[m][row]) for m, row in rows.items()}
        return Sample(
            id=self.ids[i],
            split=self._split,
            label=float(self._labels[i]),
            raw_text="" if self._raw is None else to_raw_text(self._raw[i]),
            **arrays,
            lengths=(lengths["text"], lengths["audio"], lengths["vision"]),
            class_label=None if self._classes is None else int(self._classes[i]),
            emotions=None if self._emotions is None else self._emotions[i],
        )

    def _join(self, modality: str, place: _Place) -> NDArray[np.int64]:
        """For each sample here, its row in another file."""
        where = place.where
        there = fields_of.ids(place.fields, where, needed=False, hint="; features of another file are joined by id")
        fields_of.same_count({"id": there, modality: self.arrays[modality]}, where)
        row_of = _row_by_id(there, where)
        missing = [name for name in _row_by_id(self.ids, self._where) if name not in row_of]
        if missing:
            raise ValueError(
                f"{where} lacks {len(missing)} samples of {self._where}, the first is {missing[0]!r} (ids there look "
                f"like {there[0]!r}); features of another file are joined by id: give both files the same ids in the "
                "same splits, or leave those samples out"
            )
        return np.array([row_of[name] for name in self.ids])

    def _modality_lengths(self, modality: str, place: _Place) -> NDArray[np.int64]:
        """Unpadded steps of each row of a modality's array."""
        tokens = modality == "text" and self.text_kind == "tokens"
        steps = self.arrays[modality].shape[2 if tokens else 1]
        count = len(self.arrays[modality])
        given = place.fields.get(f"{modality}_lengths")
        if given is None and (modality == "text" or is_aligned_by_fet(place.fields)):
            mask = np.asarray(place.fields.get("text_bert"))
            given = np.minimum(mask[:, 1].sum(axis=1), steps) if mask.shape[:2] == (count, 3) else None
        return fields_of.lengths(given, steps=np.full(count, steps), where=f"{place.where}: {modality}_lengths")


def _ignored(files: list[Splits], splits: dict[str, _Split]) -> dict[str, int]:
    """What is in the files and not in the samples; names of other files than the first have their path."""
    found = files[0].ignored()
    for other in files[1:]:
        found |= {f"{other.path}: {name}": count for name, count in other.ignored().items()}
    for split in splits.values():
        found |= {f"{where}: samples": count for where, count in split.unjoined.items() if count}
    return found


def _row_by_id(ids: list[str], where: str) -> dict[str, int]:
    """The row of each id; `ValueError` where one is missing or duplicate, so that a join would be ambiguous."""
    found: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not name:
            raise ValueError(f"{where} sample {row} has no id; features of another file are joined by id: give it one")
        if name in found:
            raise ValueError(
                f"{where}: the id {name!r} is there twice: samples {found[name]} and {row}; features of another file "
                "are joined by id: give every sample an id of its own in both files"
            )
        found[name] = row
    return found


def _text_kind(place: _Place, text: TextChoice) -> TextKind | None:
    """What the text of a file is, by the user's choice; None: none is read."""
    if text == "transcripts":
        return None
    if text == "auto":
        text = "features" if "text" in place.fields else "tokens"
    member = "text" if text == "features" else "text_bert"
    if member not in place.fields:
        hint = "; make tokens of raw_text with --tokenizer NAME" if "raw_text" in place.fields else ""
        raise ValueError(f"{place.where} lacks {member}; it has {', '.join(map(str, place.fields))}{hint}")
    return text
