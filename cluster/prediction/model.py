"""A trained model on its way to actors: read once, by the driver, so that all have the weights of one checkpoint, and
none needs the directory of the run. Of an ensemble there are several."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import safetensors.torch
from torch import Tensor

from dmd.checkpoint.writer import tensor_bytes
from dmd.inference.ensemble import Calibration
from dmd.inference.model_files import ModelFiles
from dmd.system.trained_model import ModelCard


@dataclass(frozen=True, kw_only=True)
class SentModel:
    """A model in Ray's object store."""

    members: tuple[tuple[ModelCard, Any], ...]
    """Card, and reference to the bytes of a safetensors file."""
    calibration: Calibration | None
    text_encoder: str | None
    """See `TrainedModel`."""

    def read(self) -> ModelFiles:
        """The model, on the node that asks."""
        return ModelFiles(
            members=tuple((card, safetensors.torch.load(ray.get(weights))) for card, weights in self.members),
            calibration=self.calibration,
        )


def send_model(files: ModelFiles, *, text_encoder: str | None) -> SentModel:
    """Put a model into Ray's object store."""
    return SentModel(
        members=tuple((card, _sent(weights)) for card, weights in files.members),
        calibration=files.calibration,
        text_encoder=text_encoder,
    )


def _sent(weights: Mapping[str, Tensor]) -> Any:
    return ray.put(b"".join(tensor_bytes(dict(weights))))
