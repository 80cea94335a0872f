"""What is said in a clip, and when."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

_WITHOUT_SPACES = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of scripts without spaces: kana and Chinese characters. Each is a word."""
_WORD = re.compile(rf"[{_WITHOUT_SPACES}][^\w\s]*|[^\s{_WITHOUT_SPACES}]+")


@dataclass(frozen=True)
class Word:
    """A word and its time; `ValueError` for an impossible time."""

    text: str
    start: float
    """Seconds."""
    stop: float
    """Seconds, not before `start`."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop < math.inf:
            raise ValueError(
                f"word {self.text!r:.40} is said from {self.start} to {self.stop} s; give times in seconds from the "
                "beginning of the media file, the start first"
            )


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What is said in a clip. Picklable. `ValueError` for words out of order."""

    text: str
    words: tuple[Word, ...] = ()
    """All words, in the order in which they are said; empty where times are not known."""
    filled: int = 0
    """Words that had no times of their own and were given those between their neighbours, or a share of their cue."""
    language: str = ""
    """What the file says, such as `en`; "": nothing."""

    def __post_init__(self) -> None:
        for number, (before, word) in enumerate(zip(self.words, self.words[1:], strict=False), start=2):
            if word.start < before.start:
                raise ValueError(
                    f"word {number}, {word.text!r:.40}, begins at {word.start} s and word {number - 1}, "
                    f"{before.text!r:.40}, at {before.start} s; write the words in the order in which they are said"
                )

    def between(self, start: float, stop: float) -> "Transcript":
        """The words whose middle is in [start, stop) seconds, with the times that they have; their texts joined.

        `filled` counts as many of them as there may be.

        Raises:
            ValueError: the words have no times.
        """
        if self.text.strip() and not self.words:
            raise ValueError("the transcript has no word times, so it cannot be cut; give a csv or json with times")
        words = tuple(word for word in self.words if start <= (word.start + word.stop) / 2 < stop)
        return Transcript(
            text=" ".join(word.text for word in words),
            words=words,
            filled=min(self.filled, len(words)),
            language=self.language,
        )


def split_words(text: str) -> list[str]:
    """The words of a text: at spaces, and single characters of scripts that have none; marks stay with the word
    before them, and marks alone are no word."""
    words: list[str] = []
    if not any(char.isalnum() for char in text):
        return words
    for part in _WORD.findall(text):
        if words and not any(char.isalnum() for char in part):
            words[-1] += part
        else:
            words.append(part)
    return words


def spread_words(texts: Sequence[str], start: float, stop: float) -> tuple[Word, ...]:
    """Words one after the other from `start` to `stop`, each as long as its share of the letters."""
    total = sum(map(len, texts))
    edges = [start]
    letters = 0
    for text in texts:
        letters += len(text)
        edges.append(start + (stop - start) * letters / total)
    return tuple(Word(text, edges[i], edges[i + 1]) for i, text in enumerate(texts))
