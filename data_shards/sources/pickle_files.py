"""Many feature pickles as one source: directories of MMSA, MulT, MISA or MAG-BERT pickles, or several that were named.

Each holds splits inside, `{split: fields}`, or what belongs to one split, which its path names: `train/part_07.pkl`,
`valid_3.pkl`. Samples are in the order of the files. Files may differ in their numbers of steps; all are padded at the
end. Each is opened twice, alone: for counts and shapes, and to be read. So a process holds one at a time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_shards.executor import Executor, InThisProcess
from data_shards.format.padding import pad_steps
from data_shards.format.schema import MODALITIES, SPLITS, Sample
from data_shards.sources.memory import SURVEY_MEMORY
from data_shards.writing.source import IdentifiedSource, Source


class PickleSource(Source, Protocol):
    """The source of one pickle."""

    nonfinite: dict[str, int]
    ignored: dict[str, int]

    def memory(self) -> int:
        """Bytes that reading takes at most."""


OpenPickle = Callable[..., PickleSource]
"""Opens a file; with `checked=True` one whose non-finite values were counted. Picklable."""


@dataclass(frozen=True, kw_only=True)
class _FileFacts:
    """What is known of a file before samples are read from it."""

    counts: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    """Modality -> steps and features, or of tokens 3 and steps; the largest over its splits."""
    tokens: bool
    nonfinite: dict[str, int]
    ignored: dict[str, int]
    memory: int
    ids: dict[str, Sequence[str]]
    """Split -> ids, where these are asked for."""
    has_splits: bool
    """Where ids are asked for: whether the file says which split they are of."""


@dataclass(frozen=True)
class _SurveyFile:
    """Opens each file and reads the first sample of its splits."""

    files: Sequence[Path]
    open: OpenPickle
    with_ids: bool

    def __call__(self, number: int) -> _FileFacts:
        """Look at a file."""
        file = self.files[number]
        source = self.open(file)
        firsts = [next(iter(source.read(split, 0, 1))) for split in source.counts()]
        facts = [_facts_of(source, first) for first in firsts]
        for other in facts[1:]:
            _check_same(str(file), other, str(file), facts[0])
        shapes = {m: tuple(map(max, *(fact.shapes[m] for fact in facts[:1] + facts))) for m in MODALITIES}
        if not self.with_ids:
            return replace(facts[0], shapes=shapes)
        assert isinstance(source, IdentifiedSource)
        ids = {split: source.ids(split) for split in source.counts()}
        return replace(facts[0], shapes=shapes, ids=ids, has_splits=source.has_splits)


class PickleFilesSource:
    """The samples of many pickles; at most one of them is open."""

    def __init__(
        self,
        files: Sequence[Path],
        open_file: OpenPickle,
        *,
        name: str,
        executor: Executor | None,
        with_ids: bool = False,
    ) -> None:
        """Open each file once.

        Args:
            with_ids: whether `ids` will be asked for.
            executor: where that is done; None: in this process.

        Raises:
            ValueError: a file that cannot be read, or whose features differ from those of the others.
        """
        self.name = name
        self._files = tuple(files)
        self.num_files = len(files)
        self._open = open_file
        self.nonfinite: dict[str, int] = {}
        """Non-finite values per split and modality, as found (with `zero` they are stored as 0)."""
        self.ignored: dict[str, int] = {}
        """What is in the files and not in the samples -> how many entries it has."""
        self._counts = np.zeros((len(SPLITS), len(files)), dtype=np.int64)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._memory = 0
        self._ids: dict[str, list[str]] = {split: [] for split in SPLITS}
        survey = _SurveyFile(self._files, open_file, with_ids)
        first: _FileFacts | None = None
        with (executor or InThisProcess()).map_in_order(survey, len(files), memory=SURVEY_MEMORY) as surveys:
            for number, facts in enumerate(surveys):
                first = first or facts
                _check_same(str(files[number]), facts, str(files[0]), first)
                self._add(number, facts)
        self.has_splits = first is not None and first.has_splits
        """Of files whose ids were asked for: whether they say which split their samples are of."""
        self._opened: tuple[int, PickleSource] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def counts(self) -> dict[str, int]:
        """Samples per split, for the splits that occur."""
        totals = dict(zip(SPLITS, self._counts.sum(axis=1).tolist(), strict=True))
        return {split: count for split, count in totals.items() if count}

    def ids(self, split: str) -> Sequence[str]:
        """The id of each sample of a split, in the order of the files."""
        return self._ids[split]

    def memory(self) -> int:
        """Bytes that reading takes at most: those of the file that takes most."""
        return self._memory

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split, in the order of the files."""
        counts = self._counts[SPLITS.index(split)]
        ends = np.cumsum(counts)
        file = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            first = int(ends[file] - counts[file])
            end = min(stop, int(ends[file]))
            if end > start:
                for sample in self._source(file).read(split, start - first, end - first):
                    yield self._padded(sample)
            start = end
            file += 1

    def file_of(self, split: str, number: int) -> str:
        """The file of a sample."""
        ends = np.cumsum(self._counts[SPLITS.index(split)])
        return str(self._files[int(np.searchsorted(ends, number, side="right"))])

    def _add(self, number: int, facts: _FileFacts) -> None:
        for split, count in facts.counts.items():
            self._counts[SPLITS.index(split), number] = count
        for modality, shape in facts.shapes.items():
            self._shapes[modality] = tuple(map(max, shape, self._shapes.get(modality, shape)))
        for mine, theirs in ((self.nonfinite, facts.nonfinite), (self.ignored, facts.ignored)):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count
        self._memory = max(self._memory, facts.memory)
        for split, ids in facts.ids.items():
            self._ids[split] += ids

    def _source(self, file: int) -> PickleSource:
        """The source of a file; the one of the last call is open, as shards share files."""
        if self._opened is None or self._opened[0] != file:
            self._opened = None  # before another one takes its memory
            self._opened = file, self._open(self._files[file], checked=True)
        return self._opened[1]

    def _padded(self, sample: Sample) -> Sample:
        """A sample with as many steps as all files have."""
        arrays: dict[str, Any] = {}
        for modality in MODALITIES:
            array, shape = getattr(sample, modality), self._shapes[modality]
            if array.dtype == np.int32:
                arrays[modality] = np.pad(array, ((0, 0), (0, shape[1] - array.shape[1])))
            else:
                arrays[modality] = pad_steps(array, shape[0]) if shape[0] > len(array) else array
        return replace(sample, **arrays)


def _facts_of(source: PickleSource, first: Sample) -> _FileFacts:
    """The facts of a source, with the shapes of one of its samples."""
    return _FileFacts(
        counts=source.counts(),
        shapes={m: getattr(first, m).shape for m in MODALITIES},
        tokens=first.text.dtype == np.int32,
        nonfinite=source.nonfinite,
        ignored=source.ignored,
        memory=source.memory(),
        ids={},
        has_splits=False,
    )


def _check_same(file: str, facts: _FileFacts, other_file: str, others: _FileFacts) -> None:
    """Raise ValueError where two files hold different features."""
    kinds = {True: "tokens", False: "text features"}
    if facts.tokens != others.tokens:
        raise ValueError(
            f"{file} has {kinds[facts.tokens]}, and {other_file} {kinds[others.tokens]}; choose with --text, or leave "
            "one out"
        )
    if facts.has_splits != others.has_splits:
        named = {True: "has splits inside", False: "none"}
        raise ValueError(
            f"{file} {named[facts.has_splits]}, and {other_file} {named[others.has_splits]}; write all files alike"
        )
    for modality in MODALITIES:
        if modality == "text" and facts.tokens:
            continue
        here, there = facts.shapes[modality][1], others.shapes[modality][1]
        if here != there:
            raise ValueError(
                f"{file}: {modality} has {here} features per step, and {there} in {other_file}; give all files the "
                "same features"
            )
