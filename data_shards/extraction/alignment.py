"""Frames become steps: the mean of the frames in each interval of time, and sequences of a given length."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ROUNDING = 1e-6
"""Seconds by which times may differ that are computed differently."""


@dataclass(frozen=True)
class Track:
    """Features of a modality per frame."""

    features: NDArray[np.float32]
    """[frames, D]"""
    centres: NDArray[np.float64]
    """Seconds of the clip at which each frame has its middle [frames], rising."""
    seconds: float
    """How long the sound or the video is."""
    usable: NDArray[np.bool_]
    """Which frames show something [frames]; the others are zeros and enter no mean."""

    @property
    def dim(self) -> int:
        return self.features.shape[1]


def interval_means(
    track: Track,
    starts: NDArray[np.float64],
    stops: NDArray[np.float64],
) -> NDArray[np.float32]:
    """The mean of the usable frames whose centres are in [start, stop), per interval.

    The mean is what the CMU multimodal SDK's example of word alignment takes (`word_level_align.py`); the SDK also
    counts frames of which only a part is in the interval. An interval in which no frame has its centre has the frame
    nearest to its middle. One in which no frame is usable has zeros, as has one outside the track.

    Args:
        starts: seconds [intervals], in any order.
        stops: seconds [intervals].

    Returns:
        [intervals, D]
    """
    means = np.zeros((len(starts), track.dim), dtype=np.float32)
    if not len(track.centres):
        return means
    firsts = np.searchsorted(track.centres, starts - _ROUNDING)
    ends = np.searchsorted(track.centres, stops - _ROUNDING)
    inside = (starts < track.seconds) & (stops >= 0)
    for row in np.flatnonzero(inside).tolist():
        first, end = int(firsts[row]), int(ends[row])
        if first >= end:
            first = int(np.argmin(np.abs(track.centres - (starts[row] + stops[row]) / 2)))
            end = first + 1
        usable = track.usable[first:end]
        if usable.any():
            means[row] = track.features[first:end][usable].mean(axis=0, dtype=np.float64)
    return means


def even_steps(track: Track, rate: float) -> NDArray[np.float32]:
    """Means over intervals of 1/`rate` seconds, from 0 to the track's end [steps, D]; the last may be shorter."""
    count = max(int(np.ceil((track.seconds - _ROUNDING) * rate)), 1)
    edges = np.arange(count + 1) / rate
    return interval_means(track, edges[:-1], edges[1:])


def fit(array: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """A sequence [T, D] cut or padded with zeros at its end to `length` steps."""
    fitted = np.zeros((length, array.shape[1]), dtype=np.float32)
    fitted[: min(length, len(array))] = array[:length]
    return fitted
