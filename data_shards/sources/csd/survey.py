"""What is known of the segments before samples are read from them: their steps, what they lack, non-finite values."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_shards.executor import Executor
from data_shards.format.schema import MODALITIES
from data_shards.sources.conversions import finite
from data_shards.sources.csd.content import ContentReader, Sequences
from data_shards.sources.csd.segments import Segment
from data_shards.sources.left_out import add_counts
from data_shards.sources.memory import SURVEY_MEMORY

_VIDEOS_PER_TASK = 16


@dataclass(frozen=True)
class _Width:
    """Features per row of a modality, and a video that has so many."""

    features: int
    video: str


@dataclass(kw_only=True)
class Facts:
    """Facts of N segments; the columns of arrays are MODALITIES."""

    steps: NDArray[np.int64]
    """Steps [N, 3]; 0: the segment lacks the modality."""
    lacks_video: NDArray[np.bool_]
    """Whether the modality's file lacks the segment's whole video [N, 3]."""
    nonfinite: NDArray[np.int64]
    """Values that are not finite, as they would be stored [N, 3]."""
    words_without: dict[str, int] = field(default_factory=dict)
    """Modality -> words that no row of it belongs to."""
    without_length: dict[str, int] = field(default_factory=dict)
    """Role -> rows whose interval has no length."""
    widths: dict[str, _Width] = field(default_factory=dict)
    memory: int = 0
    """Bytes of the rows of the largest video."""


@dataclass(frozen=True)
class _SurveyVideos:
    """Reads the segments of some videos."""

    sequences: Sequences
    blocks: Sequence[Sequence[Segment]]
    limits: dict[str, int]

    def __call__(self, number: int) -> Facts:
        """Look at a block."""
        segments = self.blocks[number]
        shape = (len(segments), len(MODALITIES))
        facts = Facts(
            steps=np.zeros(shape, dtype=np.int64),
            lacks_video=np.zeros(shape, dtype=np.bool_),
            nonfinite=np.zeros(shape, dtype=np.int64),
        )
        with ExitStack() as stack:
            reader = self.sequences.open(stack)
            for row, segment in enumerate(segments):
                content = reader.read(segment)
                _add_rows(facts, reader, segment.video, self.sequences.paths)
                for column, (m, role) in enumerate(self.sequences.roles.items()):
                    facts.lacks_video[row, column] = role not in reader.rows
                    facts.steps[row, column] = len(content.arrays.get(m, ()))
                    if m in content.arrays and role != "words":
                        array = content.arrays[m][: self.limits.get(m)]
                        facts.nonfinite[row, column] = int((~finite(array)).sum())
                add_counts(facts.words_without, content.words_without)
        return facts


def survey(sequences: Sequences, segments: Sequence[Segment], limits: dict[str, int], executor: Executor) -> Facts:
    """The facts of all segments, some videos a task.

    Args:
        segments: those of a video stand together.
        limits: modality -> steps beyond which nothing is stored.

    Raises:
        ValueError: a file that cannot be read; videos with different features.
    """
    videos = [list(group) for _, group in groupby(segments, lambda segment: segment.video)]
    starts = range(0, len(videos), _VIDEOS_PER_TASK)
    blocks = [[one for video in videos[start : start + _VIDEOS_PER_TASK] for one in video] for start in starts]
    parts: list[Facts] = []
    widths: dict[str, _Width] = {}
    run = _SurveyVideos(sequences, blocks, limits)
    with executor.map_in_order(run, len(blocks), memory=SURVEY_MEMORY) as surveys:
        for part in surveys:
            for m, width in part.widths.items():
                _check_width(widths, m, width, sequences.paths[m])
            parts.append(part)
    whole = Facts(
        steps=np.concatenate([part.steps for part in parts]),
        lacks_video=np.concatenate([part.lacks_video for part in parts]),
        nonfinite=np.concatenate([part.nonfinite for part in parts]),
        widths=widths,
        memory=max(part.memory for part in parts),
    )
    for part in parts:
        add_counts(whole.words_without, part.words_without)
        add_counts(whole.without_length, part.without_length)
    return whole


def _add_rows(facts: Facts, reader: ContentReader, video: str, paths: dict[str, Path]) -> None:
    """The facts of rows that the reader has just read."""
    for role in reader.fresh:
        found = reader.rows.get(role)
        if found is None:
            continue
        add_counts(facts.without_length, {role: found.without_length})
        if role in MODALITIES:
            _check_width(facts.widths, role, _Width(found.features.shape[1], video), paths[role])
    facts.memory = max(facts.memory, sum(rows.nbytes for rows in reader.rows.values()))


def _check_width(widths: dict[str, _Width], m: str, found: _Width, path: Path) -> None:
    """Raise ValueError where two videos differ in their features."""
    known = widths.setdefault(m, found)
    if known.features != found.features:
        raise ValueError(
            f"{path}: {found.video} has {found.features} features per row, and {known.video} {known.features}; all "
            "videos of a sequence have the same features"
        )
