"""What an executor runs for a clip, in this process: of which file its record speaks, and which errors cost a clip."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_shards.clip_sets.jobs import ClipJob
from data_shards.clip_sets.one_clip import ExtractOne, Makers, Outcome
from data_shards.extraction.clip import ClipError
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.transcript import Transcript
from data_shards.text.tokenizer import TokenCounts
from tests.support.clips import tones, write_wav


class StatesThat:
    """Hidden states of zeros, after something else."""

    digest = "none"
    dim = 2

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def look(self, words: Sequence[str]) -> TokenCounts:
        return TokenCounts(tokens=len(words), known=len(words), unknown=[])

    def __call__(self, words: Sequence[str]) -> NDArray[np.float32]:
        self._act()
        return np.zeros((len(words), self.dim), dtype=np.float32)


def extract(job: ClipJob, act: Callable[[], object]) -> Outcome:
    """Extract a clip of hidden states alone; `act` happens meanwhile."""
    settings = ExtractionSettings(audio="none", vision="none", text="states", text_encoder="encoder")
    makers = Makers(load_states=lambda name: StatesThat(act))
    return ExtractOne(jobs=(job,), settings=settings, makers=makers, seconds=60)(0)


def raiser(error: Exception) -> Callable[[], object]:
    """What raises an error."""

    def act() -> None:
        raise error

    return act


@pytest.fixture
def job(tmp_path: Path) -> ClipJob:
    """A recording, of which something is said."""
    transcript = Transcript(text="two words")
    return ClipJob(id="a", split="", labels={}, media=write_wav(tmp_path / "a.wav", tones(0.2)), transcript=transcript)


def test_a_file_that_changes_meanwhile_is_extracted_again(job):
    outcome = extract(job, lambda: write_wav(job.media, tones(0.3)))
    assert outcome.record is not None
    assert not outcome.record.fits(job)
    outcome = extract(job, lambda: None)
    assert outcome.record is not None
    assert outcome.record.fits(job)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("graph has errors"), "RuntimeError: graph has errors"),
        (ValueError("axis 1 is out of bounds"), "ValueError: axis 1 is out of bounds"),
        (ClipError("its sound is too short"), "its sound is too short"),
    ],
)
def test_an_error_of_a_library_costs_its_clip(job, error, reason):
    assert extract(job, raiser(error)) == Outcome(number=0, reason=reason)


def test_what_no_clip_survives_ends_all_and_a_failing_disk_is_tried_again(job, tmp_path):
    with pytest.raises(OSError, match="the disk is gone"):
        extract(job, raiser(OSError("the disk is gone")))
    makers = Makers(face_model=tmp_path / "none.task")
    with pytest.raises(ValueError, match="there is no face model"):
        ExtractOne(jobs=(job,), settings=ExtractionSettings(audio="none"), makers=makers, seconds=60)(0)
