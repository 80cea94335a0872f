"""MMSA feature pickles: `{split: {id, raw_text, text | text_bert, audio, vision, regression_labels, *_lengths}}`.

Aligned and unaligned files look the same: only their sequence lengths differ. MulT's pickles are the same with
`labels` [N, 1, 1] and ids [video, start, stop]. `text` chooses what the shards hold: `features` the float array
`text`, `tokens` the WordPiece array `text_bert`, and `auto` features where the file has them and tokens otherwise.
Where `text_lengths` is absent the attention mask of `text_bert` gives the text's valid length; a modality without any
length counts as full. A modality may come from another pickle of this layout (MMSA's feature_T, feature_A,
feature_V): its samples are joined by id, which must be there once on either side.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.format.schema import MODALITIES, Sample, TextKind
from data_shards.safe_pickle.load import Pickle
from data_shards.sources import fields as fields_of
from data_shards.sources.conversions import check_nonfinite, to_features, to_raw_text, to_tokens
from data_shards.sources.pickled import Splits

TextChoice = Literal["auto", "features", "tokens"]
Nonfinite = Literal["refuse", "zero"]


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
        classes: bool = False,
        need_ids: bool = True,
        opened: Pickle | None = None,
    ) -> None:
        """Open a pickle.

        Args:
            others: modality -> the pickle that it comes from instead.
            class_labels: samples have their number in `classification_labels` too.
            classes: labels are class numbers, from `classification_labels` before `labels`.
            need_ids: without, samples of a file without ids have empty ones.
        """
        self.name = name or Path(path).stem
        self._zero = nonfinite == "zero"
        main = opened or Pickle(path)
        extra = {modality: (str(other), Pickle(other)) for modality, other in (others or {}).items()}
        self._pickles = [main, *(pickle for _, pickle in extra.values())]
        splits = Splits(main.value, str(path))
        homes = {m: Splits(pickle.value, other) for m, (other, pickle) in extra.items()}
        wanted = _Wanted(text, class_labels, classes, need_ids)
        self._splits = {split: _Split(splits, split, homes, wanted) for split in splits}
        self.ignored = _ignored([splits, *homes.values()], self._splits)
        """What is in the files and not in the samples -> how many entries it has."""
        if len({split.text_kind for split in self._splits.values()}) > 1:
            raise ValueError(f"{path}: some splits have text features and others only tokens; choose with --text")
        counted = {
            f"{name}/{m}": split.nonfinite(m, self._release) for name, split in self._splits.items() for m in MODALITIES
        }
        self.nonfinite = {name: count for name, (count, _) in counted.items() if count}
        """Non-finite values per split and modality, as found (with `zero` they are stored as 0)."""
        if not self._zero:
            check_nonfinite(counted, str(path))

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return {name: split.count for name, split in self._splits.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split."""
        for i in range(start, stop):
            yield self._splits[split].sample(i, zero=self._zero)
            if i % 64 == 0:
                self._release()
        self._release()

    def _release(self) -> None:
        for pickle in self._pickles:
            pickle.release()


@dataclass(frozen=True)
class _Wanted:
    """What samples are to have."""

    text: TextChoice
    class_labels: bool
    classes: bool
    need_ids: bool


class _Split:
    """The fields of one split, checked to agree with each other."""

    def __init__(self, splits: Splits, split: str, extra: dict[str, Splits], wanted: _Wanted) -> None:
        fields, self._where, self._split = splits[split], f"{splits.path}: {split}", split
        self._raw = None if fields.get("raw_text") is None else fields_of.column(fields, "raw_text", self._where)
        label_field = fields_of.label_field(fields, self._where, classes=wanted.classes)
        self._labels = fields_of.labels(fields, label_field, self._where, classes=wanted.classes)
        self._classes = fields_of.classes(fields, self._where) if wanted.class_labels else None
        without = not wanted.need_ids and "id" not in fields and not extra
        self._ids = [""] * len(self._labels)
        if not without:
            hint = "" if extra else "; without ids, number the samples with --ids number"
            self._ids = fields_of.ids(fields, self._where, needed=wanted.need_ids and not extra, hint=hint)
        homes = dict.fromkeys(MODALITIES, (fields, self._where))
        homes |= {m: (other.fields(split), f"{other.path}: {split}") for m, other in extra.items()}
        self.text_kind = _text_kind(*homes["text"], wanted.text)
        members = {**{m: m for m in MODALITIES}, "text": "text_bert" if self.text_kind == "tokens" else "text"}
        self._arrays = {m: fields_of.rows(homes[m][0], members[m], homes[m][1]) for m in MODALITIES}
        own = {m: array for m, array in self._arrays.items() if m not in extra}
        raw = {} if self._raw is None else {"raw_text": self._raw}
        raw |= {} if self._classes is None else {"classification_labels": self._classes}
        self.count = fields_of.same_count({"id": self._ids, "labels": self._labels, **raw, **own}, self._where)
        self._order = {m: self._join(m, *homes[m]) for m in extra}
        shape = self._arrays["text"].shape
        if self.text_kind == "tokens" and shape[1] != 3:
            raise ValueError(f"{self._where}: text_bert has shape {shape}; it must be [N, 3, T]")
        self._lengths = {m: self._modality_lengths(m, *homes[m]) for m in MODALITIES}
        self.unjoined = {homes[m][1]: len(self._arrays[m]) - self.count for m in extra}
        """By place, the samples of other files that no sample here is joined with."""

    def nonfinite(self, modality: str, release: Callable[[], None]) -> tuple[int, str]:
        """How many values of a modality are not finite, and the id of the first sample that has one."""
        if modality == "text" and self.text_kind == "tokens":
            return 0, ""
        order, used = self._order.get(modality), None
        if order is not None:
            used = np.zeros(len(self._arrays[modality]), dtype=np.bool_)
            used[order] = True
        count, first = self._arrays[modality].nonfinite(release, used)
        if count and order is not None:
            first = int(np.argmax(order == first))
        return count, self._ids[first] if count else ""

    def sample(self, i: int, *, zero: bool) -> Sample:
        """Sample `i`; with `zero` its non-finite features become 0."""
        rows = {m: int(self._order[m][i]) if m in self._order else i for m in MODALITIES}
        arrays: dict[str, Any] = {}
        for m in MODALITIES:
            array = self._arrays[m][rows[m]]
            try:
                tokens = m == "text" and self.text_kind == "tokens"
                arrays[m] = to_tokens(array) if tokens else to_features(array, zero=zero)
            except ValueError as error:
                raise ValueError(f"{self._where} sample {self._ids[i]!r}: {m}: {error}") from error
        text_length, audio_length, vision_length = (int(self._lengths[m][rows[m]]) for m in MODALITIES)
        return Sample(
            id=self._ids[i],
            split=self._split,
            label=float(self._labels[i]),
            raw_text="" if self._raw is None else to_raw_text(self._raw[i]),
            **arrays,
            lengths=(text_length, audio_length, vision_length),
            class_label=None if self._classes is None else int(self._classes[i]),
        )

    def _join(self, modality: str, fields: dict[str, Any], where: str) -> NDArray[np.int64]:
        """For each sample here, its row in another file."""
        there = fields_of.ids(fields, where, needed=False, hint="; features of another file are joined by id")
        fields_of.same_count({"id": there, modality: self._arrays[modality]}, where)
        place = _places(there, where)
        missing = [name for name in _places(self._ids, self._where) if name not in place]
        if missing:
            raise ValueError(
                f"{where} lacks {len(missing)} samples of {self._where}, the first is {missing[0]!r} (ids there look "
                f"like {there[0]!r}); features of another file are joined by id: give both files the same ids in the "
                "same splits, or leave those samples out"
            )
        return np.array([place[name] for name in self._ids])

    def _modality_lengths(self, modality: str, fields: dict[str, Any], where: str) -> NDArray[np.int64]:
        tokens = modality == "text" and self.text_kind == "tokens"
        steps = self._arrays[modality].shape[2 if tokens else 1]
        given, count = fields.get(f"{modality}_lengths"), len(self._arrays[modality])
        if given is None and modality == "text":
            mask = np.asarray(fields.get("text_bert"))
            given = np.minimum(mask[:, 1].sum(axis=1), steps) if mask.shape[:2] == (count, 3) else None
        return fields_of.lengths(given, count=count, steps=steps, where=f"{where}: {modality}_lengths")


def _ignored(files: list[Splits], splits: dict[str, _Split]) -> dict[str, int]:
    """What is in the files and in no sample; of files beside the first with their path."""
    found = files[0].ignored()
    for other in files[1:]:
        found |= {f"{other.path}: {name}": count for name, count in other.ignored().items()}
    for split in splits.values():
        found |= {f"{where}: samples": count for where, count in split.unjoined.items() if count}
    return found


def _places(ids: list[str], where: str) -> dict[str, int]:
    """The row of each id; `ValueError` where one is missing or there twice, so that a join would have to choose."""
    place: dict[str, int] = {}
    for row, name in enumerate(ids):
        if not name:
            raise ValueError(f"{where} sample {row} has no id; features of another file are joined by id: give it one")
        if name in place:
            raise ValueError(
                f"{where}: the id {name!r} is there twice: samples {place[name]} and {row}; features of another file "
                "are joined by id: give every sample an id of its own in both files"
            )
        place[name] = row
    return place


def _text_kind(fields: dict[str, Any], where: str, text: TextChoice) -> TextKind:
    if text == "auto":
        text = "features" if "text" in fields else "tokens"
    member = "text" if text == "features" else "text_bert"
    if member not in fields:
        raise ValueError(f"{where} lacks {member}; it has {', '.join(map(str, fields))}")
    return text
