"""DMD, Decoupled Multimodal Distilling for Emotion Recognition: model, losses, kernels, training, metrics.

data = dmd.Dataset.from_pickle("unaligned_50.pkl")
dmd.train("mosi-unaligned", data, "runs/first")             # needs the extra [train]
dmd.evaluate("runs/first", data)["fused"]["mae"]
model = dmd.load("runs/first")      # or what `dmd export` wrote; dmd.load([run, run]): an ensemble
model.predict(text=text, audio=audio, vision=None)
model = dmd.from_pretrained("OWNER/NAME")    # what `dmd.push_to_hub` uploaded
dmd.predict_clip(model, "clip.mp4", transcript="I liked it")    # of a model whose features `dmd extract` made
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from data_shards.places import PlaceLike
    from dmd.checkpoint.select import Step
    from dmd.dataset import Dataset as Dataset
    from dmd.evaluation.any_model import evaluate as evaluate
    from dmd.evaluation.ensemble import calibrate as calibrate
    from dmd.inference.hub import from_pretrained as from_pretrained
    from dmd.inference.hub import push_to_hub as push_to_hub
    from dmd.inference.model_files import Model
    from dmd.inference.model_files import load as load
    from dmd.inference.predict_clip import predict_clip as predict_clip
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
    "calibrate": "dmd.evaluation.ensemble",
    "evaluate": "dmd.evaluation.any_model",
    "from_pretrained": "dmd.inference.hub",
    "load": "dmd.inference.model_files",
    "predict_clip": "dmd.inference.predict_clip",
    "push_to_hub": "dmd.inference.hub",
    "train": "dmd.training.in_process",
}
"""Where the rest of this package's API is; a module is imported when one of its names is asked for."""


def save(
    model: "Model | str | Path | Sequence[str | Path]",
    directory: "str | Path",
    *,
    step: "Step | None" = None,
    program: bool = True,
    text_encoder: str | None = None,
    merge: bool = False,
    license: str | None = None,
    calibration: "PlaceLike | None" = None,
) -> str | None:
    """Write a model as one directory that `dmd.load` reads, as `dmd export` does: weights, config, README.md, program.

    Args:
        model: one in memory, which stays as it is; a run; or another export. An ensemble, or several runs and exports,
            become a directory with `ensemble.json` and an export of each member below it.
        directory: a new one, or that of an export, which is replaced.
        step: which checkpoint of a run: its step, "best" or "last"; or the mean of several: "average:5", of the newest
            five that it keeps, or "soup" (docs/sharing.md). None: the best.
        program: whether to make a `torch.export` program.
        text_encoder: where the text encoder's own weights are, of a model that names them; None: where it says.
        merge: add LoRA's adapters to the weights of the text encoder, so that the export needs no base.
        license: what the README says, such as `mit`; None: nothing.
        calibration: shards whose validation split calibrates several runs; None: those of their trainings.

    Returns:
        Why there is no program; None if there is one.

    Raises:
        ValueError: no such checkpoint, nothing to merge, a directory that holds other files, or into which another
            process writes.
    """
    from pathlib import Path

    from dmd.inference.any_export import export_any

    return export_any(
        model,
        Path(directory),
        step=step,
        program=program,
        text_encoder=text_encoder,
        merge=merge,
        license=license,
        calibration=calibration,
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
