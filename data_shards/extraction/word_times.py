"""When the words of a clip are said, from its beginning."""

import numpy as np
from numpy.typing import NDArray

from data_shards.extraction.clip import ClipError
from data_shards.extraction.findings import Findings
from data_shards.extraction.settings import WordTimes
from data_shards.extraction.transcript import Transcript, split_words, spread_words


def words_of(transcript: Transcript) -> list[str]:
    """The words, one per step of what is aligned to them."""
    return [word.text for word in transcript.words] or split_words(transcript.text)


def word_intervals(
    transcript: Transcript,
    *,
    start: float,
    seconds: float,
    times: WordTimes,
    findings: Findings,
) -> NDArray[np.float64]:
    """Start and stop of each word in seconds of the clip [words, 2].

    Args:
        start: seconds of the media file at which the clip begins.
        seconds: how long the clip is.

    Raises:
        ClipError: there is no word, no word time, or no word that is said in the clip.
    """
    if transcript.words:
        intervals = np.array([(word.start, word.stop) for word in transcript.words]) - start
        _check_times(transcript, intervals, seconds, findings)
        return intervals
    words = split_words(transcript.text)
    if not words:
        raise ClipError("it has no word to which its features can be aligned; `--alignment none` needs none")
    if times == "given":
        raise ClipError(
            "its transcript has no word times; give a csv or json with times, or take `--word-times spread` or "
            "`--alignment none`"
        )
    return np.array([(word.start, word.stop) for word in spread_words(words, 0.0, seconds)])


def _check_times(
    transcript: Transcript,
    intervals: NDArray[np.float64],
    seconds: float,
    findings: Findings,
) -> None:
    count = len(intervals)
    if transcript.filled:
        what = f"{transcript.filled} of its {count} words have no times of their own and share those around them"
        findings.warn("words-without-times", what)
    if overlapping := int((intervals[1:, 0] < intervals[:-1, 1]).sum()):
        what = f"{overlapping} of its {count} words begin before the word before them ends"
        findings.warn("words-overlap", what)
    outside = int(((intervals[:, 0] >= seconds) | (intervals[:, 1] < 0)).sum())
    if outside == count:
        raise ClipError(
            f"none of its {count} words is said in its {seconds:.3f} s; word times are seconds from the beginning of "
            "the media file"
        )
    if outside:
        what = f"{outside} of its {count} words are said outside its {seconds:.3f} s and have zeros"
        findings.warn("words-outside", what)
