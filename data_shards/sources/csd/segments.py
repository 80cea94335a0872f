"""The labelled segments of the videos of a data set."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.labels import Labels
from data_shards.sources.conversions import to_emotions
from data_shards.sources.csd.alignment import EPSILON
from data_shards.sources.csd.files import CsdFile, without_number
from data_shards.sources.left_out import counted, named, some


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A labelled part of a video."""

    id: str
    """`VIDEO[NUMBER]`, as the SDK names it."""
    entry: str
    """Its entry among the labels: its video; in files that were aligned to segments the segment itself."""
    start: float
    """Seconds."""
    stop: float
    label: float
    """Sentiment or class number; NaN of emotions alone."""
    emotions: NDArray[np.uint8] | None
    """[L], as `Sample.emotions`."""
    split: str

    @property
    def video(self) -> str:
        """The video that it is a part of."""
        return without_number(self.entry)


def read_segments(path: Path, splits: Mapping[str, str], declared: Labels) -> tuple[list[Segment], dict[str, int]]:
    """All segments that are in a split, in the order of their entries; and what is left out.

    Args:
        path: the sequence of the labels. Its first column is the sentiment (or class number); with emotions declared
            those follow, as in CMU-MOSEI, or are all that there is.
        splits: video, or segment -> split.

    Raises:
        ValueError: labels that cannot be read; no segment in any split.
    """
    found: list[Segment] = []
    empty: list[str] = []
    unsplit: list[str] = []
    there: set[str] = set()
    columns = 1
    with CsdFile(path) as file:
        for entry in file.entries():
            intervals, labels = file.labels(entry)
            columns = max(columns, labels.shape[1])
            names = _names(entry, intervals)
            there |= {without_number(entry), *names}
            for row, (name, (start, stop)) in enumerate(zip(names, intervals.tolist(), strict=True)):
                split = splits.get(name, splits.get(without_number(entry)))
                if not stop - start > EPSILON:
                    empty.append(name)
                elif split is None:
                    unsplit.append(name)
                else:
                    fields = _fields(labels[row], declared, f"{path}: {name}")
                    found.append(Segment(id=name, entry=entry, start=start, stop=stop, split=split, **fields))
    if not found and not unsplit:
        raise ValueError(
            f"{path}: none of its {len(empty)} segments has a length: {some(empty)}; give labels whose intervals are "
            "seconds, each from a start to a later end"
        )
    if not found:
        raise ValueError(
            f"{path}: none of its {len(unsplit)} segments is in a split: --splits names {some(list(splits))}, the "
            f"labels {some(unsplit)}; give splits of these videos"
        )
    left_out = {
        **named("segments without a length", empty),
        **named("segments of videos in no split", unsplit),
        **named("videos of --splits without labels", [name for name in splits if name not in there]),
        **counted("labels: columns after the first", len(found) if columns > 1 and not declared.emotions else 0),
    }
    return found, left_out


def _fields(row: NDArray[np.float64], declared: Labels, where: str) -> dict[str, Any]:
    """The fields of a segment that a row of the labels gives."""
    names = declared.emotions
    if not names:
        return {"label": float(row[0]), "emotions": None}
    if len(row) not in (len(names), len(names) + 1):
        raise ValueError(
            f"{where} has {len(row)} columns of labels, and --emotions {len(names)} names; they are the columns after "
            "the first, which is a sentiment, or all (CMU-MOSEI: --emotions happy,sad,anger,surprise,disgust,fear)"
        )
    label = float(row[0]) if len(row) > len(names) else math.nan
    return {"label": label, "emotions": to_emotions(row[-len(names) :].tolist(), names, f"{where}: emotions")}


def _names(entry: str, intervals: NDArray[np.float64]) -> list[str]:
    if "[" in entry and len(intervals) == 1:
        return [entry]
    return [f"{entry}[{row}]" for row in range(len(intervals))]
