"""DMD, Decoupled Multimodal Distilling for Emotion Recognition: model, losses, kernels, training, metrics.

model = dmd.load("exported")        # what `dmd export` wrote, or the directory of a run
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from dmd.system.trained_model import TrainedModel


def load(
    path: "str | Path", device: "str | torch.device | None" = None, *, text_encoder: str | None = None
) -> "TrainedModel":
    """A trained model that predicts, without DeepSpeed and Ray; see `dmd.inference.export.load`."""
    from dmd.inference.export import load as load_export

    return load_export(path, device, text_encoder=text_encoder)


def __getattr__(name: str) -> Any:
    """`dmd.__version__`, the installed version; read from the installation when it is asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dmd-cluster")
    raise AttributeError(f"module 'dmd' has no attribute {name!r}")
