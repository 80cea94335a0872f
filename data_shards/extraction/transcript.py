"""What is said in a clip, and when."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A word and its time."""

    text: str
    start: float
    """Seconds."""
    stop: float
    """Seconds, not before `start`."""


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What is said in a clip. Picklable."""

    text: str
    words: tuple[Word, ...] = ()
    """All words, in the order in which they are said; empty where times are not known."""
    filled: int = 0
    """Words that had no times of their own and were given those between their neighbours."""
    language: str = ""
    """What the file says, such as `en`; "": nothing."""

    def between(self, start: float, stop: float) -> "Transcript":
        """The words whose middle is in [start, stop) seconds, with the times that they have; their texts joined.

        Raises:
            ValueError: the words have no times.
        """
        raise NotImplementedError
