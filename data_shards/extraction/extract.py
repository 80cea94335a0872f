"""The features of one clip."""

from pathlib import Path

from data_shards.extraction.clip import Clip, ExtractedClip
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.text import States, Tokens


def extract_clip(
    clip: Clip,
    settings: ExtractionSettings,
    *,
    face_model: Path | None = None,
    tokenizer: Tokens | None = None,
    states: States | None = None,
) -> ExtractedClip:
    """Make the features of a clip; the same clip and settings give the same bytes. Frames are never all in memory.

    Args:
        settings: of `preparation.prepare`.
        face_model: as for `prepare`.
        tokenizer: of `settings.text_encoder`, where `settings.text` is `tokens`.
        states: of `settings.text_encoder`, where `settings.text` is `states`.

    Raises:
        ClipError: no features can be made of this clip: the reason.
        ValueError: none can be made of any clip: a library or the face model is missing.
    """
    raise NotImplementedError
