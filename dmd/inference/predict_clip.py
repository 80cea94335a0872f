"""The prediction of one clip: `dmd.predict_clip`."""

from pathlib import Path

from dmd.inference.clips import FeatureMaker, clip_jobs
from dmd.inference.inputs import read_clips
from dmd.inference.model_files import Model
from dmd.inference.outputs import predictions
from dmd.inference.transcript_text import TranscriptText
from dmd.system.trained_model import Prediction


def predict_clip(
    model: Model,
    clip: str | Path,
    *,
    transcript: str | None = None,
    face_model: str | Path | None = None,
    tokenizer: str | None = None,
    text_encoder: str | None = None,
    word_vectors: str | None = None,
) -> Prediction:
    """Predict a video or a sound file, by features that are made as those of the model's training were.

    Args:
        clip: the file.
        transcript: what is said ("": nothing), or the file of a transcript; None: a file beside the clip.
        face_model: MediaPipe's face_landmarker.task; None: that of an installed package.
        tokenizer: path or hub name of the model's tokenizer; None: as the training named it, of this machine.
        text_encoder: the same of the encoder whose hidden states are the text; one that is a part of the model is given
            to `dmd.load`.
        word_vectors: the file that the text features were taken from; None: as the training named it.

    Raises:
        ValueError: the training's features were not made of clips, no features can be made of this one, or what makes
            them is missing or another.
    """
    text = TranscriptText(model.card, tokenizer=tokenizer, word_vectors=word_vectors)
    face = None if face_model is None else Path(face_model)
    maker = FeatureMaker(model.card, text, face_model=face, text_encoder=text_encoder)
    jobs = clip_jobs([Path(clip)], transcript)
    (found,) = predictions(model, read_clips(jobs, model.card, maker, text))  # to its end: warnings come last
    return found[1]
