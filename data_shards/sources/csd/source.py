"""Computational sequences of the CMU SDK as samples: a segment of a video that has a label, with the rows inside it.

With `align="words"` a sample has one step per word: the word's own features, and the mean of the audio and vision rows
that belong to it (`alignment`), zeros where none does. With `align="none"` each modality keeps its own rows. Segments
that lack a modality are left out and counted, as the SDK's `unify` and `hard_unify` remove them. Values that are not
finite are zeroed after the mean, as the field's loaders do with COVAREP's. Files are read one video at a time, twice:
for lengths and checks, and to write.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, compress, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.executor import Executor, InThisProcess
from data_shards.format.schema import MODALITIES, SPLITS, Sample, check_choice
from data_shards.labels import Labels
from data_shards.sources.conversions import NO_TEXT, check_nonfinite, to_features
from data_shards.sources.csd.content import Align, Sequences
from data_shards.sources.csd.files import CsdFile, without_number
from data_shards.sources.csd.segments import Segment, read_segments
from data_shards.sources.csd.survey import Facts, survey
from data_shards.sources.left_out import counted, named
from data_shards.sources.mmsa import Nonfinite

_COPIES = 4
"""Of a video's rows while they are read: as stored, as sorted, as put together, their means."""
_READER_MEMORY = 64 << 20
"""Bytes of HDF5's own: chunks, and what it keeps of groups."""


class CsdSource:
    """Segments of computational sequences; pickled as the paths of their files and what is known of each segment."""

    def __init__(
        self,
        paths: dict[str, Path],
        splits: dict[str, str],
        *,
        name: str,
        labels: Labels | None = None,
        align: Align = "words",
        lengths: dict[str, int] | None = None,
        nonfinite: Nonfinite = "refuse",
        executor: Executor | None = None,
    ) -> None:
        """Open the sequences and read all segments once.

        Args:
            paths: role (`roles.ROLES`) -> file. Without text, samples are aligned to the words, and have a sentence and
                `NO_TEXT`: their text is to be made of it.
            splits: video, or segment as `VIDEO[NUMBER]` -> split.
            labels: what the columns of the labels are; None: the first is a sentiment.
            align: to words, or not.
            lengths: modality -> steps that samples are cut or padded to; others get as many as the longest has.
            executor: where the segments are read that once; None: in this process.

        Raises:
            ValueError: a file that is no sequence; no segment with all modalities; features of different widths.
        """
        check_choice(align, Align, "--align")
        self.name = name
        self._zero = nonfinite == "zero"
        segments, self.ignored = read_segments(paths["labels"], splits, labels or Labels())
        """What is in the files and in no sample -> how many entries it has."""
        limits = lengths or {}
        self._sequences = self._find_entries(paths, align, segments)
        facts = survey(self._sequences, segments, limits, executor or InThisProcess())
        whole: NDArray[np.bool_] = np.all(facts.steps > 0, axis=1)
        self.ignored |= _incomplete(segments, facts)
        if not whole.any():
            counts = ", ".join(f"{what} ({count})" for what, count in self.ignored.items())
            raise ValueError(
                f"{paths['labels']}: no segment has text, audio and vision: {counts}; give sequences of the same "
                "videos, with intervals in seconds"
            )
        steps = facts.steps[whole]
        self.ignored |= _cut(steps, limits)
        for m, count in facts.words_without.items():
            self.ignored |= counted(f"words without {m}, stored as 0", count)
        for role, count in facts.without_length.items():
            self.ignored |= counted(f"{role} rows without a length", count)
        self._steps = dict(zip(MODALITIES, steps.max(axis=0).tolist(), strict=True)) | limits
        self._modalities = tuple(m for m in MODALITIES if m in paths)
        self._memory = facts.memory
        chosen = list(compress(segments, whole.tolist()))
        self._segments = {split: [one for one in chosen if one.split == split] for split in SPLITS}
        bad = _nonfinite(chosen, facts.nonfinite[whole])
        self.nonfinite = {place: count for place, (count, _) in bad.items()}
        """Non-finite values per split and modality, as found (with `zero` they are stored as 0)."""
        if not self._zero:
            check_nonfinite(bad, str(paths["labels"].parent))

    def counts(self) -> dict[str, int]:
        """Samples per split, for the splits that occur."""
        return {split: len(segments) for split, segments in self._segments.items() if segments}

    def memory(self) -> int:
        """Bytes that reading takes at most: the rows of the largest video."""
        return _READER_MEMORY + _COPIES * self._memory

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split, in the order of their videos and segments."""
        with ExitStack() as stack:
            reader = self._sequences.open(stack)
            for segment in self._segments[split][start:stop]:
                content = reader.read(segment)
                arrays: dict[str, Any] = {"text": NO_TEXT}
                steps = {"text": 0}
                for m in self._modalities:
                    arrays[m] = self._fit(m, content.arrays[m])
                    steps[m] = min(len(content.arrays[m]), self._steps[m])
                yield Sample(
                    id=segment.id,
                    split=split,
                    label=segment.label,
                    emotions=segment.emotions,
                    raw_text=content.raw_text,
                    lengths=(steps["text"], steps["audio"], steps["vision"]),
                    **arrays,
                )

    def _fit(self, m: str, array: NDArray[Any]) -> NDArray[np.float32]:
        """A modality's array with the steps of all samples."""
        return to_features(array[: self._steps[m]], zero=self._zero, steps=self._steps[m])

    def _find_entries(self, paths: dict[str, Path], align: Align, segments: Sequence[Segment]) -> Sequences:
        """Look at the entries of all files; counts videos that no segment is of."""
        videos = {segment.video for segment in segments}
        with CsdFile(paths["labels"]) as file:
            labelled = set(file.entries())
        found: dict[str, dict[str, tuple[str, ...]]] = {}
        by_segment: set[str] = set()
        for role in sorted(paths.keys() - {"labels"}):
            with CsdFile(paths[role]) as file:
                grouped = groupby(sorted(file.entries(), key=without_number), without_number)
                by_video = {video: tuple(group) for video, group in grouped}
            self.ignored |= counted(f"videos of {role} without labels in a split", len(by_video.keys() - videos))
            entries = {video: by_video[video] for video in by_video.keys() & videos}
            if any(group != (video,) for video, group in entries.items()):
                found[role] = entries
                if labelled.issuperset(chain.from_iterable(entries.values())):
                    by_segment.add(role)
        return Sequences(paths=paths, align=align, entries=found, by_segment=frozenset(by_segment))


def _incomplete(segments: Sequence[Segment], facts: Facts) -> dict[str, int]:
    """The segments that lack a modality, under the first that each lacks."""
    found: dict[str, int] = {}
    for column, m in enumerate(MODALITIES):
        lacks = (facts.steps[:, column] == 0) & (facts.steps[:, :column] > 0).all(axis=1)
        lacks_video = lacks & facts.lacks_video[:, column]
        found |= named(f"segments of videos that {m} lacks", _ids(segments, lacks_video))
        found |= named(f"segments without {m}", _ids(segments, lacks & ~lacks_video))
    return found


def _ids(segments: Sequence[Segment], chosen: NDArray[np.bool_]) -> list[str]:
    return [segment.id for segment in compress(segments, chosen.tolist())]


def _cut(steps: NDArray[np.int64], limits: dict[str, int]) -> dict[str, int]:
    """The steps beyond the limits."""
    found: dict[str, int] = {}
    for column, m in enumerate(MODALITIES):
        if m in limits:
            beyond = np.maximum(steps[:, column] - limits[m], 0)
            found |= counted(f"{m} steps beyond {limits[m]}, of {int((beyond > 0).sum())} segments", int(beyond.sum()))
    return found


def _nonfinite(segments: Sequence[Segment], counts: NDArray[np.int64]) -> dict[str, tuple[int, str]]:
    """By split and modality, how many values are not finite, and the id of the first segment that has one."""
    found: dict[str, tuple[int, str]] = {}
    for segment, row in zip(segments, counts.tolist(), strict=True):
        for m, count in zip(MODALITIES, row, strict=True):
            if count:
                before, first = found.get(f"{segment.split}/{m}", (0, segment.id))
                found[f"{segment.split}/{m}"] = before + count, first
    return found
