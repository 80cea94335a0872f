"""DMD, Decoupled Multimodal Distilling for Emotion Recognition: model, losses, kernels, training, metrics.

data = dmd.Dataset.from_pickle("unaligned_50.pkl")
dmd.train("mosi-unaligned", data, "runs/first")             # needs the extra [train]
dmd.evaluate("runs/first", data)["fused"]["mae"]
model = dmd.load("runs/first")      # or what `dmd export` wrote
model.predict(text=text, audio=audio, vision=None)
model = dmd.from_pretrained("OWNER/NAME")    # what `dmd.push_to_hub` uploaded
dmd.predict_clip(model, "clip.mp4", transcript="I liked it")    # of a model whose features `dmd extract` made
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from dmd.checkpoint.select import Step
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
    path: "str | Path",
    device: "str | torch.device | None" = None,
    *,
    step: "Step | None" = None,
    text_encoder: str | None = None,
) -> "TrainedModel":
    """A trained model that predicts, without DeepSpeed and Ray: of an export, or of a checkpoint of a run.

    Args:
        path: directory that `dmd export` or a training wrote.
        device: where it runs; None: the GPU where there is one.
        step: which checkpoint of a run: its step, "best" or "last"; None: the best, or what an export holds.
        text_encoder: where the text encoder's own weights are, of a model that names them; None: where it says.

    Raises:
        ValueError: neither of the two, damaged, a step that is not there (the message has those that are), or a text
            encoder that is not here or has other weights.
    """
    from dmd.inference.export import load as load_export

    return load_export(path, device, step=step, text_encoder=text_encoder)


def save(
    model: "TrainedModel | str | Path",
    directory: "str | Path",
    *,
    step: "Step | None" = None,
    program: bool = True,
    text_encoder: str | None = None,
    merge: bool = False,
    license: str | None = None,
) -> str | None:
    """Write a model as one directory that `dmd.load` reads, as `dmd export` does: weights, config, README.md, program.

    Args:
        model: one in memory, which stays as it is; a run; or another export.
        directory: a new one, or that of an export, which is replaced.
        step: which checkpoint of a run: its step, "best" or "last"; None: the best.
        program: whether to make a `torch.export` program.
        text_encoder: where the text encoder's own weights are, of a model that names them; None: where it says.
        merge: add LoRA's adapters to the weights of the text encoder, so that the export needs no base.
        license: what the README says, such as `mit`; None: nothing.

    Returns:
        Why there is no program; None if there is one.

    Raises:
        ValueError: no such checkpoint, nothing to merge, a directory that holds other files, or into which another
            process writes.
    """
    from pathlib import Path

    from dmd.inference.export import export

    return export(
        model, Path(directory), step=step, program=program, text_encoder=text_encoder, merge=merge, license=license
    )


def from_pretrained(
    repo_id: "str | Path",
    *,
    revision: str | None = None,
    token: str | None = None,
    device: "str | torch.device | None" = None,
    text_encoder: str | None = None,
) -> "TrainedModel":
    """A trained model from a repository of the Hugging Face hub, or from a directory; see
    `dmd.inference.hub.from_pretrained`."""
    from dmd.inference.hub import from_pretrained as fetch

    return fetch(repo_id, revision=revision, token=token, device=device, text_encoder=text_encoder)


def push_to_hub(
    model: "TrainedModel | str | Path",
    repo_id: str,
    *,
    step: "Step | None" = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    program: bool = True,
    text_encoder: str | None = None,
    license: str | None = None,
    replace_readme: bool = False,
) -> str:
    """Upload a model to the Hugging Face hub, in one commit; returns the commit's address. See
    `dmd.inference.hub.push_to_hub`."""
    from dmd.inference.hub import push_to_hub as push

    return push(
        model,
        repo_id,
        step=step,
        private=private,
        token=token,
        revision=revision,
        commit_message=commit_message,
        program=program,
        text_encoder=text_encoder,
        license=license,
        replace_readme=replace_readme,
    )


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
