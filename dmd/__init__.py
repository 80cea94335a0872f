"""DMD, Decoupled Multimodal Distilling for Emotion Recognition: model, losses, kernels, training, metrics.

data = dmd.Dataset.from_pickle("unaligned_50.pkl")
dmd.train("mosi-unaligned", data, "runs/first")             # needs the extra [train]
dmd.evaluate("runs/first", data)["fused"]["mae"]
model = dmd.load("runs/first")      # or what `dmd export` wrote
model.predict(text=text, audio=audio, vision=None)
dmd.predict_clip(model, "clip.mp4", transcript="I liked it")    # of a model whose features `dmd extract` made
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from dmd.dataset import Dataset as Dataset
    from dmd.evaluation.any_model import evaluate as evaluate
    from dmd.system.trained_model import Prediction, TrainedModel
    from dmd.training.callbacks import Callback as Callback
    from dmd.training.callbacks import StopTraining as StopTraining
    from dmd.training.in_process import train as train
    from dmd.training.outcome import EpochReport as EpochReport
    from dmd.training.outcome import Outcome as Outcome
    from dmd.training.outcome import StepReport as StepReport

_PLACES = {
    "Callback": "dmd.training.callbacks",
    "Dataset": "dmd.dataset",
    "EpochReport": "dmd.training.outcome",
    "Outcome": "dmd.training.outcome",
    "StepReport": "dmd.training.outcome",
    "StopTraining": "dmd.training.callbacks",
    "evaluate": "dmd.evaluation.any_model",
    "train": "dmd.training.in_process",
}
"""Where the rest of this package's API is; a module is imported when one of its names is asked for."""


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
    """A name of the API; `dmd.__version__`, the installed version, is read from the installation."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dmd-cluster")
    if name not in _PLACES:
        raise AttributeError(f"module 'dmd' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, "__version__"})
