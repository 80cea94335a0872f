"""MISA and MAG-BERT pickles: lists of `((words, visual, acoustic[, actual words]), label, segment)`.

MAG-BERT has one file `{train, dev, test}`, MISA a directory with train.pkl, dev.pkl and test.pkl. Their text becomes
tokens: words that are numbers are the tokens; of spelled words (MISA's actual words) text is made later, as of any
transcript (`data_shards.text`). Sequences keep their own lengths and are padded at the end.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.format.schema import Sample
from data_shards.labels import Labels
from data_shards.safe_pickle.load import Pickle
from data_shards.sources.conversions import (
    NO_TEXT,
    check_nonfinite,
    to_emotions,
    to_features,
    to_id,
    to_label,
    to_text,
)
from data_shards.sources.mmsa import Nonfinite, TextChoice
from data_shards.sources.paths import named_files
from data_shards.sources.pickled import as_text, size_of
from data_shards.sources.splits import find_splits

_OBJECTS = 4096
"""Bytes that an entry takes beside its arrays."""


@dataclass(frozen=True)
class _Entry:
    """One sample as it is in the pickle, checked."""

    tokens: list[int]
    """Empty where text is made of the words later."""
    raw_text: str
    vision: NDArray[np.float32]
    audio: NDArray[np.float32]
    label: float
    emotions: NDArray[np.uint8] | None
    segment: str


class MisaSource:
    """Word-level pickles; held in memory, as they are many small arrays."""

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        text: TextChoice = "auto",
        labels: Labels | None = None,
        nonfinite: Nonfinite = "refuse",
        need_ids: bool = True,
        opened: Pickle | None = None,
        split: str | None = None,
    ) -> None:
        """Open a pickle or a directory of them; without `need_ids` a segment may have no name.

        Args:
            labels: what is read as labels; None: sentiments. A label that is the emotions has a number for each; one
                number more is a sentiment before them, as in CMU-MOSEI's labels.
            split: the split of a pickle that holds the list of one.
        """
        self.name = name or Path(path).stem
        self._reopen = partial(
            MisaSource,
            path,
            name=name,
            text=text,
            labels=labels,
            nonfinite=nonfinite,
            need_ids=need_ids,
            split=split,
        )
        self._labels = labels or Labels()
        found, self.ignored, self._memory = _splits(path, opened, split)
        """What is in the file or the directory and not in the samples -> how many entries it has."""
        self._reads_tokens = text != "transcripts"
        self._zero = nonfinite == "zero"
        self._need_ids = need_ids
        self._entries = {split: self._parse(entries, where) for split, (entries, where) in found.items()}
        all_entries = [entry for entries in self._entries.values() for entry in entries]
        self._steps = {
            "text": max(len(entry.tokens) for entry in all_entries),
            "audio": max(len(entry.audio) for entry in all_entries),
            "vision": max(len(entry.vision) for entry in all_entries),
        }
        bad_values = {
            f"{split}/{modality}": _nonfinite(entries, modality)
            for split, entries in self._entries.items()
            for modality in ("audio", "vision")
        }
        self.nonfinite = {name: count for name, (count, _) in bad_values.items() if count}
        """Non-finite values per split and modality, as found (with `zero` they are stored as 0)."""
        if not self._zero:
            check_nonfinite(bad_values, str(path))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its path."""
        return self._reopen, ()

    def memory(self) -> int:
        """Bytes that it takes at most: all samples are in memory, as in the pickle and as they are checked."""
        entries = (entry for entries in self._entries.values() for entry in entries)
        return self._memory + sum(_OBJECTS + entry.vision.nbytes + entry.audio.nbytes for entry in entries)

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return {split: len(entries) for split, entries in self._entries.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split."""
        for entry in self._entries[split][start:stop]:
            yield Sample(
                id=entry.segment,
                split=split,
                label=entry.label,
                emotions=entry.emotions,
                raw_text=entry.raw_text,
                text=self._tokens(entry),
                audio=to_features(entry.audio, zero=self._zero, steps=self._steps["audio"]),
                vision=to_features(entry.vision, zero=self._zero, steps=self._steps["vision"]),
                lengths=(len(entry.tokens), len(entry.audio), len(entry.vision)),
            )

    def _tokens(self, entry: _Entry) -> NDArray[np.int32]:
        """Ids, mask and token types of a sample [3, T]."""
        if not self._reads_tokens:
            return NO_TEXT
        tokens = np.zeros((3, self._steps["text"]), dtype=np.int32)
        tokens[0, : len(entry.tokens)] = entry.tokens
        tokens[1, : len(entry.tokens)] = 1
        return tokens

    def _parse(self, entries: object, where: str) -> list[_Entry]:
        if isinstance(entries, dict):
            raise ValueError(
                f"{where} is a dict of fields, as MMSA has them; put all splits into one pickle {{split: fields}}"
            )
        if not isinstance(entries, (list, tuple)) or not entries:
            raise ValueError(f"{where} is no list of samples, or an empty one; leave the split out or fill it")
        return [self._entry(entry, f"{where} sample {number}") for number, entry in enumerate(entries)]

    def _entry(self, entry: Any, where: str) -> _Entry:
        match entry:
            case ((words, vision, audio), label, segment):
                actual_words = words
            case ((words, vision, audio, actual_words), label, segment):
                pass
            case _:
                raise ValueError(f"{where} is not ((words, visual, acoustic), label, segment)")
        name = to_id(segment, where, needed=self._need_ids)
        try:
            texts = [to_text(word) for word in actual_words]
            number, emotions = self._read_label(label)
            vision, audio = to_features(vision), to_features(audio)
            tokens = _to_token_ids(words) if self._reads_tokens else []
        except (TypeError, ValueError, IndexError) as error:
            raise ValueError(f"{where}: {error}") from error
        if not (tokens if self._reads_tokens else texts) or not len(vision) or not len(audio):
            raise ValueError(f"{where} ({name}) has no words, no frames or no sound; leave it out")
        return _Entry(tokens, " ".join(texts), vision, audio, number, emotions, name)

    def _read_label(self, label: Any) -> tuple[float, NDArray[np.uint8] | None]:
        """Sentiment or class number (NaN: there is none), and the emotions."""
        names = self._labels.emotions
        values = np.asarray(label).reshape(-1).tolist()
        if not names and len(values) != 1:
            raise ValueError(
                f"its label has {len(values)} values; give one, such as the sentiment, or name emotions with --emotions"
            )
        if not names:
            return to_label(values[0], self._labels.label_names, "its label"), None
        if len(values) - len(names) not in (0, 1):
            raise ValueError(
                f"its label has {len(values)} values, but --emotions has {len(names)} names: {', '.join(names)}; name "
                "each one, in their order, after the sentiment if there is one"
            )
        number = to_label(values[0], (), "its sentiment") if len(values) > len(names) else math.nan
        return number, to_emotions(values[-len(names) :], names, "its emotions")


def _to_token_ids(words: Any) -> list[int]:
    array = np.asarray(words)
    if array.dtype.kind not in "iu":
        if array.dtype.kind == "f":
            raise ValueError(f"its words are {array.dtype}, not token ids; give whole numbers")
        raise ValueError("its words are text, not token ids; make tokens of them with --tokenizer NAME_OR_PATH")
    numbers = [int(word) for word in array.reshape(-1)]
    if wrong := [number for number in numbers if not 0 <= number < 1 << 31]:
        raise ValueError(f"its word {wrong[0]} is no token id; give numbers from 0 to {(1 << 31) - 1}")
    return numbers


def _splits(
    path: str | Path, opened: Pickle | None, split: str | None
) -> tuple[dict[str, tuple[object, str]], dict[str, int], int]:
    """Per split the list of samples and what errors call it; how much there is besides, by name; bytes of it all."""
    root = Path(path)
    if root.is_dir():
        files = dict(named_files([root]))
        pickles = {file.stem: file for file in files if file.suffix.lower() == ".pkl" and file.parent == root}
        names = find_splits(pickles, str(path))
        if not names:
            single = f"; it holds {next(iter(pickles.values()))}: give that file" if pickles else ""
            raise ValueError(f"{path} has no split: a directory holds train.pkl, dev.pkl and test.pkl{single}")
        chosen = {split: pickles[name] for split, name in names.items()}
        ignored = {f"file {name}": 1 for file, name in files.items() if file not in chosen.values()}
        read = {name: Pickle(file) for name, file in chosen.items()}
        memory = sum(map(_memory, read.values()))
        return {name: (pickle.value, str(chosen[name])) for name, pickle in read.items()}, ignored, memory
    whole = opened or Pickle(root)
    data, memory = whole.value, _memory(whole)
    if split is not None:
        return {split: (data, str(path))}, {}, memory
    names = find_splits(data, str(path)) if isinstance(data, dict) else {}
    if not names:
        raise ValueError(f"{path} has no split: give a pickle or a directory with train, dev or test")
    ignored = {as_text(name): size_of(value) for name, value in data.items() if name not in names.values()}
    return {split: (data[name], f"{path}: {as_text(name)}") for split, name in names.items()}, ignored, memory


def _memory(pickle: Pickle) -> int:
    """Bytes of a pickle's objects and of its arrays, all of which are used."""
    return pickle.memory + pickle.size


def _nonfinite(entries: list[_Entry], modality: str) -> tuple[int, str]:
    bad = [(int((~np.isfinite(getattr(entry, modality))).sum()), entry.segment) for entry in entries]
    return sum(count for count, _ in bad), next((segment for count, segment in bad if count), "")
