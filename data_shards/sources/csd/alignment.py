"""Which rows of a sequence belong to an interval, and their mean: the rule of the SDK's `mmdataset.align`.

A row belongs to an interval that it shares more than EPSILON seconds with, however little of it lies inside; all rows
that belong to it count alike in the mean. That is `align` with the collapse function of its examples, which takes
`numpy.average` of the features and does not look at the intervals
(https://github.com/A2Zadeh/CMU-MultimodalSDK, mmsdk/mmdatasdk/dataset/dataset.py and
examples/mmdatasdk_examples/full_examples/process_mosi.py).
"""

import numpy as np
from numpy.typing import NDArray

EPSILON = 10e-6
"""Seconds; what is no longer does not count, as in the SDK."""


class Timeline:
    """Intervals [N, 2] in the order of their starts; they may overlap."""

    def __init__(self, intervals: NDArray[np.float64]) -> None:
        self._starts = intervals[:, 0]
        self._ends = intervals[:, 1]
        self._latest = np.maximum.accumulate(self._ends)
        """The latest end of an interval and all before it."""

    def inside(self, start: float, stop: float) -> NDArray[np.int64]:
        """The numbers of the intervals that share more than EPSILON seconds with [start, stop]."""
        first = int(np.searchsorted(self._latest, start, side="right"))
        last = int(np.searchsorted(self._starts, stop, side="left"))
        shared = np.minimum(self._ends[first:last], stop) - np.maximum(self._starts[first:last], start)
        return first + np.flatnonzero(shared > EPSILON)


def means(
    timeline: Timeline, features: NDArray[np.number], words: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int]:
    """The mean of the rows of each word, in float64.

    Args:
        timeline: of the rows [N].
        features: [N, D].
        words: their starts and ends [W, 2].

    Returns:
        The means [W, D], zeros for a word without a row, as the SDK's `impute` gives it; and how many words have none.
    """
    found = np.zeros((len(words), features.shape[1]), dtype=np.float64)
    without = 0
    for number, (start, stop) in enumerate(words.tolist()):
        rows = timeline.inside(start, stop)
        if not len(rows):
            without += 1
            continue
        with np.errstate(invalid="ignore"):  # of infinities of both signs, which are counted later
            found[number] = features[rows].mean(axis=0, dtype=np.float64)
    return found, without
