"""The labelled segments of the videos of a data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
    split: str

    @property
    def video(self) -> str:
        """The video that it is a part of."""
        return without_number(self.entry)


def read_segments(path: Path, splits: Mapping[str, str]) -> tuple[list[Segment], dict[str, int]]:
    """All segments that are in a split, in the order of their entries; and what is left out.

    Args:
        path: the sequence of the labels; the first column is the sentiment.
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
                    label = float(labels[row, 0])
                    found.append(Segment(id=name, entry=entry, start=start, stop=stop, label=label, split=split))
    if not found:
        raise ValueError(
            f"{path}: none of its {len(unsplit)} segments is in a split: --splits names {some(list(splits))}, the "
            f"labels {some(unsplit)}; give splits of these videos"
        )
    left_out = {
        **named("segments without a length", empty),
        **named("segments of videos in no split", unsplit),
        **named("videos of --splits without labels", [name for name in splits if name not in there]),
        **counted("labels: columns after the first", len(found) if columns > 1 else 0),
    }
    return found, left_out


def _names(entry: str, intervals: NDArray[np.float64]) -> list[str]:
    if "[" in entry and len(intervals) == 1:
        return [entry]
    return [f"{entry}[{row}]" for row in range(len(intervals))]
