"""What an executor runs for each clip: its features, or why there are none."""

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from data_shards.clip_sets.clip_rows import ClipRecord, record_of
from data_shards.clip_sets.jobs import ClipJob
from data_shards.extraction.clip import Clip, ClipError, ExtractedClip
from data_shards.extraction.extract import extract_clip
from data_shards.extraction.preparation import find_face_model, other_versions
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.text import States
from data_shards.extraction.transcript import Transcript
from data_shards.extraction.transcript_files import read_transcript
from data_shards.format.schema import is_utf8
from data_shards.text.tokenizer import Tokenizer

LoadStates = Callable[[str], States]
"""Loads the encoder of that name; a function of a module, since it is pickled."""
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
"""What another attempt would meet again."""


@dataclass(frozen=True, kw_only=True)
class Makers:
    """What makes features beside the settings. Picklable."""

    face_model: Path | None = None
    tokenizer: Tokenizer | None = None
    """Where the settings ask for tokens."""
    load_states: LoadStates | None = None
    """Where they ask for hidden states; each process loads the encoder once."""

    def states(self, settings: ExtractionSettings) -> States | None:
        """The encoder, in this process. Raises ValueError: there is none of that name."""
        return None if self.load_states is None else _load_states(self.load_states, settings.text_encoder)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a clip."""

    number: int
    clip: ExtractedClip | None = None
    record: ClipRecord | None = None
    reason: str = ""
    """Why there are no features."""


@dataclass(frozen=True, kw_only=True)
class ExtractOne:
    """Extracts one of many clips. Picklable."""

    jobs: tuple[ClipJob, ...]
    settings: ExtractionSettings
    makers: Makers
    seconds: int
    """A clip that takes longer ends its process: a decoder that hangs cannot be asked to stop."""

    def __call__(self, number: int) -> Outcome:
        """Extract clip `number`.

        Raises:
            ValueError: no clip can be extracted here: a library or the face model is missing.
            OSError: of a storage that may work at another attempt.
        """
        job = self.jobs[number]
        makers, states = self.makers, self.makers.states(self.settings)
        _check_libraries(self.settings, makers)
        with _time_limit(self.seconds), quiet_libraries():
            try:
                record = record_of(job)
                clip = Clip(id=job.id, media=job.media, transcript=spoken_in(job), start=job.start, stop=job.stop)
                found = extract_clip(
                    clip, self.settings, face_model=makers.face_model, tokenizer=makers.tokenizer, states=states
                )
                warnings = tuple((warning.kind, warning.text) for warning in found.warnings)
                return Outcome(number=number, clip=found, record=replace(record, warnings=warnings))
            except (ClipError, *_LASTING) as error:
                return Outcome(number=number, reason=str(error))
            except OSError:
                raise
            except Exception as error:  # of a library, which the others need not meet
                return Outcome(number=number, reason=f"{type(error).__name__}: {error}")


def _check_libraries(settings: ExtractionSettings, makers: Makers) -> None:
    """Raise ValueError where a library or the face model is missing here: then no clip can be extracted."""
    other_versions(settings)
    if settings.vision != "none":
        find_face_model(makers.face_model)


def spoken_in(job: ClipJob) -> Transcript | None:
    """What is said in a clip.

    Raises:
        ClipError: the transcript cannot be read, is no Unicode text, or says nothing of this segment. OSError.
    """
    said = _said_in(job)
    if said is not None and not is_utf8(said.text):
        raise ClipError(
            f"its transcript {said.text!a:.60} holds half of a surrogate pair, which is no character; write the text "
            "as UTF-8 again"
        )
    return said


def _said_in(job: ClipJob) -> Transcript | None:
    if job.transcript_file is None:
        whole = job.transcript
    else:
        try:
            whole = read_transcript(job.transcript_file)
        except ValueError as error:
            raise ClipError(str(error)) from error
        if job.is_segment and not whole.words:
            whole = job.transcript
            if whole is None:
                raise ClipError(f"{job.transcript_file} has no times, so what is said in a part of it is not known")
    if whole is None or not job.is_segment or not whole.words:
        return whole
    return whole.between(job.start, math.inf if job.stop is None else job.stop)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Discard what native code prints within the block: MediaPipe logs for every clip, whatever it is told."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """End this process where the block takes longer."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@lru_cache(maxsize=1)
def _load_states(load: LoadStates, name: str) -> States:
    return load(name)
