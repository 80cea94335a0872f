"""DMD, Decoupled Multimodal Distilling for Emotion Recognition: model, losses, kernels, training, metrics.

model = dmd.load("exported")        # what `dmd export` wrote, or the directory of a run
"""

from typing import TYPE_CHECKING

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
