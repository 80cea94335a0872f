"""DMD, Decoupled Multimodal Distilling for Emotion Recognition: model, losses, kernels, training, metrics.

model = dmd.load("exported")        # what `dmd export` wrote, or the directory of a run
dmd.predict_clip(model, "clip.mp4", transcript="I liked it")    # of a model whose features `dmd extract` made
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from dmd.system.trained_model import Prediction, TrainedModel


def load(
    path: "str | Path", device: "str | torch.device | None" = None, *, text_encoder: str | None = None
) -> "TrainedModel":
    """A trained model that predicts, without DeepSpeed and Ray; see `dmd.inference.export.load`."""
    from dmd.inference.export import load as load_export

    return load_export(path, device, text_encoder=text_encoder)


def predict_clip(
    model: "TrainedModel",
    clip: "str | Path",
    *,
    transcript: str | None = None,
    face_model: "str | Path | None" = None,
    tokenizer: str | None = None,
    text_encoder: str | None = None,
    word_vectors: str | None = None,
) -> "Prediction":
    """What a model says about a video or a sound file; see `dmd.inference.predict_clip.predict_clip`."""
    from dmd.inference.predict_clip import predict_clip as predict_one

    return predict_one(
        model,
        clip,
        transcript=transcript,
        face_model=face_model,
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        word_vectors=word_vectors,
    )


def __getattr__(name: str) -> Any:
    """`dmd.__version__`, the installed version; read from the installation when it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dmd-cluster")
    raise AttributeError(f"module 'dmd' has no attribute {name!r}")
