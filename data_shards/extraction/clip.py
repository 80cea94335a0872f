"""A clip, what is made of it, and why nothing can be made of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_shards.extraction.transcript import Transcript

WarningKind = Literal[
    "text-cut",
    "audio-cut",
    "vision-cut",
    "no-sound",
    "no-video",
    "frames-without-face",
    "damaged-frames",
    "ends-early",
    "no-face",
    "no-transcript",
    "other-script",
    "unknown-words",
    "words-without-times",
    "words-overlap",
    "words-outside",
    "nonfinite",
]


class ClipError(ValueError):
    """No features can be made of a clip. The text is the reason, without the clip's name; other clips are unharmed."""


@dataclass(frozen=True)
class ClipWarning:
    """Something that is lost or doubtful in the features of a clip."""

    kind: WarningKind
    """By which warnings of many clips are counted."""
    text: str
    """What and how much, without the clip's name."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One utterance: a media file or a part of one, and what is said in it. Picklable."""

    id: str
    media: Path
    """A video, or a recording without one."""
    transcript: Transcript | None = None
    """Its times count from the beginning of `media`, as `start` and `stop` do."""
    start: float = 0.0
    """Seconds of `media` at which the clip begins."""
    stop: float | None = None
    """Seconds of `media` at which it ends; None: where the file does."""


@dataclass(frozen=True, kw_only=True)
class ExtractedClip:
    """The features of a clip."""

    id: str
    raw_text: str
    text: NDArray[Any] | None
    """Hidden states [T, D] float32 or tokens [3, T] int32; None where `settings.text` is `raw`."""
    audio: NDArray[np.float32] | None
    """[T, D]; None where `settings.audio` is `none`."""
    vision: NDArray[np.float32] | None
    """[T, D]; None where `settings.vision` is `none`."""
    lengths: dict[str, int]
    """Unpadded steps of every modality that has an array; at least 1. Where `settings.lengths` names no length there
    is no padding."""
    duration: float
    """Seconds."""
    warnings: tuple[ClipWarning, ...] = ()
    """At most one of a kind."""

    @property
    def said(self) -> str | None:
        """What is said; None where there is no transcript, or one of white space alone."""
        return self.raw_text if self.raw_text.strip() else None
