"""Clips as `dmd predict` reads them: their features are made as those of the training were, by what the card says.

jobs = clip_jobs(["clip.mp4"], "I liked it")    # or folders; a file, a folder or a table of transcripts
maker = FeatureMaker(card)                      # ValueError: the training's features were not made of clips
fields = clip_fields(jobs, maker)               # what a feature pickle holds

Of many clips `dmd extract` makes features faster, and keeps them. The libraries that do so are those of the extra
`extract`, loaded when a clip is read.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.clip_sets.clip_files import MEDIA_SUFFIXES, find_clips, transcript_file
from data_shards.clip_sets.jobs import ClipJob
from data_shards.clip_sets.one_clip import quiet_libraries, spoken_in
from data_shards.extraction.clip import Clip, ClipError, ClipWarning, ExtractedClip
from data_shards.extraction.extract import extract_clip
from data_shards.extraction.preparation import other_versions, prepare
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.text import States
from data_shards.extraction.transcript import Transcript
from data_shards.extraction.transcript_files import TRANSCRIPT_SUFFIXES, read_transcript, read_transcript_table
from data_shards.format.extraction_files import differences
from data_shards.format.index_file import INDEX_NAME
from data_shards.label_options import format_counts
from data_shards.progress import Progress
from data_shards.sources.paths import named_files
from dmd.inference.transcript_text import TranscriptText
from dmd.system.trained_model import ModelCard

_log = logging.getLogger(__name__)
_FREE = ("text", "text_encoder", "text_digest", "word_times", "lengths", "missing", "language", "dims", "versions")
"""Settings that may differ from those of the training: what they change shows in shapes, or is compared by itself."""


def are_clips(path: Path) -> bool:
    """Whether a path is a video or a sound file, by its name, or a folder that holds one and no shards."""
    if path.is_dir():
        return not (path / INDEX_NAME).exists() and any(_is_media(file) for file, _ in named_files([path]))
    return _is_media(path)


def _is_media(file: Path) -> bool:
    return file.suffix.lower() in MEDIA_SUFFIXES


def clip_jobs(places: Sequence[Path], transcript: str | None) -> list[ClipJob]:
    """The clips of files or of one folder, with what is said in them.

    Args:
        places: media files, or one folder.
        transcript: a text or a transcript's file, of one clip; a folder with a file per clip, or a csv of all; None:
            the files beside the clips.

    Raises:
        ValueError: no clip, or a transcript that cannot be read or is not that of the clips.
    """
    clips = _clips(places)
    folder, table = _transcripts(transcript, clips)
    return [
        ClipJob(
            id=name,
            split="",
            labels={},
            media=media,
            transcript=table.get(name),
            transcript_file=None if table else transcript_file(media, _root(places, media), folder),
        )
        for name, media in clips.items()
    ]


def _root(places: Sequence[Path], media: Path) -> Path:
    return places[0] if places[0].is_dir() else media.parent


def _clips(places: Sequence[Path]) -> dict[str, Path]:
    """Media files by clip id: their path in a folder, or their name, without the suffix."""
    if len(places) == 1 and places[0].is_dir():
        found = find_clips(places[0])
        several = next((name for name, media in found.media.items() if len(media) > 1), None)
        if several is not None:
            names = ", ".join(media.name for media in found.media[several])
            raise ValueError(f"{places[0]}: the clip {several} has several files: {names}; leave one")
        if found.unknown:
            _log.warning("warning: %s: ignored: %s", places[0], format_counts(found.unknown))
        for name, reason in found.faults:
            _log.warning("warning: not predicted: %s: %s", name, reason)
        return {name: media[0] for name, media in found.media.items()}
    for place in places:
        if place.is_dir() or not _is_media(place):
            raise ValueError(f"{place} is no video and no sound file; give several clips, or one folder of clips")
        if not place.is_file():
            raise ValueError(f"{place} is empty or no file: there is nothing at this path; give a clip")
    stems = Counter(place.stem for place in places)
    return {place.stem if stems[place.stem] == 1 else str(place): place for place in places}


def _transcripts(given: str | None, clips: Mapping[str, Path]) -> tuple[Path | None, dict[str, Transcript]]:
    """The folder of transcripts that was given, and those that were given by clip; neither: they lie beside the
    clips."""
    if given is None:
        return None, {}
    path = _as_path(given) if given.strip() else None  # nothing is said: no path, though `Path("")` is a directory
    if path is not None and path.is_dir():
        return path, {}
    if path is None:
        if len(clips) > 1:
            raise ValueError(
                f"--transcript is one text, and there are {len(clips)} clips; give a folder with a file for each, or a "
                "csv with the columns clip and text"
            )
        return None, dict.fromkeys(clips, Transcript(text=given))
    if not path.is_file():
        raise ValueError(f"--transcript {path} is not there; give a transcript's file, or what is said itself")
    return None, _of_file(path, clips)


def _as_path(given: str) -> Path | None:
    """The path that a transcript names, None for what is said itself."""
    path = Path(given)
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte
        return None
    return path if is_there or (path.suffix.lower() in TRANSCRIPT_SUFFIXES and len(given.split()) == 1) else None


def _of_file(path: Path, clips: Mapping[str, Path]) -> dict[str, Transcript]:
    """The transcripts that a file holds of these clips."""
    if len(clips) == 1 and not _names_clips(path):
        return dict.fromkeys(clips, read_transcript(path))
    if path.suffix.lower() != ".csv":
        raise ValueError(
            f"--transcript {path} is of one clip, and there are {len(clips)}; give a folder with a file for each, or a "
            "csv with the columns clip and text"
        )
    table = read_transcript_table(path)
    lacking = [name for name in clips if name not in table]
    if lacking:
        raise ValueError(
            f"{path} has no transcript of {len(lacking)} of {len(clips)} clips, the first is {lacking[0]}; its column "
            f"clip holds names such as {min(table)}: give each clip a row, with an empty text where nothing is said"
        )
    return {name: table[name] for name in clips}


def _names_clips(path: Path) -> bool:
    """Whether a file is a csv whose rows name their clips."""
    if path.suffix.lower() != ".csv":
        return False
    try:
        return bool(read_transcript_table(path))
    except ValueError:  # `read_transcript` says what is wrong
        return False


def reads_states(card: ModelCard, text: TranscriptText) -> bool:
    """Whether the text that a model reads of clips are hidden states of an encoder that is no part of the model.

    Raises:
        ValueError: the training's features were not made of clips.
    """
    return not text.is_known and extraction_settings(card).text == "states"


class FeatureMaker:
    """Makes features of clips as those of a model's training were made."""

    def __init__(
        self,
        card: ModelCard,
        text: TranscriptText,
        *,
        face_model: Path | None = None,
        text_encoder: str | None = None,
    ) -> None:
        """Load what that takes. Other versions of libraries than the training's are a warning.

        Args:
            text: what makes the model's text of transcripts.
            face_model: MediaPipe's face_landmarker.task; None: that of an installed package.
            text_encoder: path or hub name of the encoder whose hidden states are the text; None: as it was named.

        Raises:
            ValueError: the training's features were not made of clips; a library is missing; another face model,
                tokenizer or encoder than that of the training; an encoder, and the text is none of its states.
        """
        settings = extraction_settings(card)
        has_states = reads_states(card, text)
        if text_encoder is not None and not has_states:
            raise ValueError(
                f"the text encoder {text_encoder!r} was named, but the text of clips is no encoder's hidden states; "
                "leave it out, or give it where the model is loaded"
            )
        if text.is_known:  # then text is made of the transcript, whether that of the training was made by `dmd extract`
            settings = replace(settings, text="raw", text_encoder="", text_digest="")
        elif not has_states:
            raise _unknown_text(text)
        self._face_model = face_model
        self._states = _states(settings.text_encoder, text_encoder) if has_states else None
        prepared = prepare(settings, face_model=face_model, states=self._states)
        for line in other_versions(settings):
            _log.warning("warning: %s", line)
        self._settings = replace(prepared, missing="zeros")  # what a clip lacks is missing, as of features
        self._has_untold = text.has_untold
        self._dims = card.data["dims"]

    def make(self, job: ClipJob) -> tuple[dict[str, Any], tuple[ClipWarning, ...]]:
        """Fields of a clip, as of a feature pickle, and what is doubtful about them. Raises ClipError."""
        clip = Clip(id=job.id, media=job.media, transcript=spoken_in(job), start=job.start, stop=job.stop)
        with quiet_libraries():
            made = extract_clip(clip, self._settings, face_model=self._face_model, states=self._states)
        return self._fields(made), made.warnings

    def _fields(self, clip: ExtractedClip) -> dict[str, Any]:
        fields: dict[str, Any] = {"id": clip.id, "raw_text": clip.said}
        if clip.text is not None:
            fields["text"] = None if clip.said is None and not self._has_untold else clip.text
        for modality, array in (("audio", clip.audio), ("vision", clip.vision)):
            # what `dmd extract` leaves out on demand is a step of zeros
            fields[modality] = np.zeros((1, self._dims[modality]), np.float32) if array is None else array
        return fields


def _unknown_text(text: TranscriptText) -> ValueError:
    """The error where nothing says how a transcript becomes the text that the model reads."""
    if text.is_tokens:
        return ValueError("nothing says which tokenizer made the tokens of the training; name it: --tokenizer PATH")
    return ValueError(
        "the text features of the training were not made by `dmd extract`, so none can be made of a transcript in the "
        "same way; make them as those of the training were made and give their file: dmd predict RUN features.pkl"
    )


def _states(trained: str, given: str | None) -> States:
    """The encoder of hidden states. Of a name that only the card says nothing is fetched: it may come from anybody."""
    from dmd.extraction.text_states import load_text_states  # with transformers, which other texts need not

    try:
        return load_text_states(given or trained, local=given is None)
    except ValueError as error:
        raise ValueError(
            f"the model was trained on hidden states of the text encoder {given or trained}, which cannot be used: "
            f"{error}; name it: --text-encoder PATH"
        ) from error


def extraction_settings(card: ModelCard) -> ExtractionSettings:
    """How the features of a model's training were made of clips.

    Raises:
        ValueError: they were not made by `dmd extract`.
    """
    values = card.data.get("extraction")
    if not values:
        raise ValueError(
            "the model was trained on features that `dmd extract` did not make, so none can be made of a clip in the "
            "same way; make them as those of the training were made and give their file: dmd predict RUN features.pkl; "
            "or train on what `dmd extract` makes"
        )
    return ExtractionSettings.from_dict(values)


def check_made_alike(card: ModelCard, extraction: Mapping[str, Any], where: str) -> None:
    """Compare how features were made with how those of the training were, where both are known, by what matters.

    Raises:
        ValueError: the settings differ. Other versions of libraries are a warning.
    """
    if not extraction or not card.data.get("extraction"):
        return
    of_training, of_these = extraction_settings(card), ExtractionSettings.from_dict(dict(extraction))
    trained, here = of_training.to_dict(), of_these.to_dict()
    both_made_text = trained["text_digest"] and here["text_digest"]
    compared = set(trained) - set(_FREE) | ({"text_digest"} if both_made_text else set())
    compared -= of_training.unused() & of_these.unused()
    unlike = differences({name: trained[name] for name in compared}, {name: here[name] for name in compared})
    if unlike:
        raise ValueError(
            f"{where} holds features that were made otherwise than those of the training ({'; '.join(unlike)}; first "
            "the training's); extract the clips as those of the training were"
        )
    if trained["versions"] != here["versions"]:
        versions = "; ".join(differences(trained["versions"], here["versions"]))
        _log.warning("warning: %s: features of other versions than those of the training: %s", where, versions)


def clip_fields(jobs: Sequence[ClipJob], maker: FeatureMaker, size: int) -> Iterator[dict[str, list[Any]]]:
    """Fields of `size` clips at a time, as of a feature pickle. A clip of which none can be made is a warning.

    Raises:
        ValueError: there is none of any clip.
    """
    failed: list[str] = []
    doubts: dict[str, list[str]] = {}
    waiting: list[dict[str, Any]] = []
    given = 0
    with Progress(len(jobs), "clips") as progress:
        for job in jobs:
            try:
                fields, warnings = maker.make(job)
            except ClipError as error:
                failed.append(f"{job.media}: {error}")
                progress.advance()
                continue
            progress.advance()
            for warning in warnings:
                doubts.setdefault(warning.kind, []).append(f"{job.media}: {warning.text}")
            waiting.append(fields)
            if len(waiting) == size:
                yield _columns(waiting)
                given, waiting = given + size, []
    if not given and not waiting:
        more = f" (and of {len(failed) - 1} more clips)" if len(failed) > 1 else ""
        raise ValueError(f"no features can be made of {failed[0]}{more}")
    if waiting:
        yield _columns(waiting)
    for said in doubts.values():
        _log.warning("warning: %s%s", said[0], f"; the same of {len(said) - 1} more clips" if len(said) > 1 else "")
    for line in failed:
        _log.warning("warning: not predicted: %s", line)


def _columns(clips: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [clip[name] for clip in clips] for name in clips[0]}
