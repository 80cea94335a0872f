"""A trained model on its way to actors: read once, by the driver, so that all have the weights of one checkpoint, and
none needs the directory of the run."""

from dataclasses import dataclass
from typing import Any

import ray
import safetensors.torch
from torch import Tensor

from dmd.checkpoint.writer import tensor_bytes
from dmd.system.trained_model import ModelCard


@dataclass(frozen=True, kw_only=True)
class SentModel:
    """A model in Ray's object store."""

    card: ModelCard
    weights: Any
    """Reference to the bytes of a safetensors file."""
    text_encoder: str | None
    """See `TrainedModel`."""

    def read_weights(self) -> dict[str, Tensor]:
        """The weights, on the node that asks."""
        content: bytes = ray.get(self.weights)
        return safetensors.torch.load(content)


def send_model(card: ModelCard, weights: dict[str, Tensor], *, text_encoder: str | None) -> SentModel:
    """Put a model into Ray's object store."""
    return SentModel(card=card, weights=ray.put(b"".join(tensor_bytes(weights))), text_encoder=text_encoder)
