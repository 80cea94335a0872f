"""What every model is: a network that predicts by named heads, and its beginning, which all of them share.

A model derives from `Network`, says what its heads are, builds its modules, and computes a `NetworkOutput`. Its forward
pass begins with `begin`: text encoder, normalisation, dropout of the text, dropout of modalities. `dmd.system.models`
lists the models.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from dmd.kernels.cpu import CPU
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.interface import Backend
from dmd.model.config import MODALITIES, ModelConfig
from dmd.model.normalisation import Normalisation
from dmd.model.padding import unpadded_steps
from dmd.model.text import TextEncoder
from dmd.model.transformer import TransformerStack

FUSED = "fused"
"""The head of every model whose prediction is the model's."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """A prediction head. Evaluation, objective, reports and predictions read the heads of the model."""

    name: str
    """In `NetworkOutput.predictions`, where the network puts what the head predicts; in JSON, logs, columns of
    predictions."""
    title: str
    """In tables and figures."""
    about: str
    """What it predicts from."""


def heads_by_name(*heads: Head) -> dict[str, Head]:
    """The heads of a model in their order, of which `fused` is the first."""
    assert heads[0].name == FUSED, heads[0].name
    return {head.name: head for head in heads}


@dataclass(frozen=True, kw_only=True)
class NetworkOutput:
    """What a network computes of B samples."""

    predictions: dict[str, Tensor]
    """{head: [B], or logits [B, outputs]} for each of the model's heads."""
    representation: Tensor
    """[B, n], what the fused prediction is made of: a vector that does not depend on the other samples."""
    compared: dict[str, Tensor] = field(default_factory=dict)
    """{name: [B, ...]}, what the model's objective reads beside predictions."""

    @property
    def spaces(self) -> dict[str, dict[str, Tensor]]:
        """{space: {modality: [B, n]}}, representations of each modality in the spaces of a model that has some."""
        return {}


@dataclass(frozen=True, kw_only=True)
class NetworkInputs:
    """What a network reads."""

    features: dict[str, Tensor]
    """{modality: [B, T, D]}, behind text encoder, normalisation and dropout."""
    text: Tensor
    """[B, T, D], the text before normalisation and dropout."""
    tokens: Tensor | None
    """[B, 3, T] token ids; None where the text comes as features."""

    def unpadded(self) -> dict[str, Tensor]:
        """{modality: [B, T]}, which steps are not padding: frames that are not all zero; of tokens those of the
        attention mask. A modality that was dropped has none."""
        unpadded = {m: unpadded_steps(self.features[m]) for m in MODALITIES}
        kept = unpadded["text"].any(1, keepdim=True)
        unpadded["text"] = unpadded_steps(self.text) & kept
        if self.tokens is not None:
            unpadded["text"] &= self.tokens[:, 1] != 0
        return unpadded


class Network(nn.Module):
    """A model, without what belongs to its objective.

    Args:
        config: hyperparameters.
        dims: feature dimension of each modality; that of the text is the encoder's where there is one.
        lengths: time steps of each modality, as padded in the shards.
        text_encoder: turns token ids into features; None where the shards hold text features.
        backend: what computes encoders and dropout; `choose_execution` chooses one for a device.
        settings: the config section of the model's own, of a class that reads it; None where it has none.
    """

    heads: Mapping[str, Head]
    """By name; `fused`, the model's prediction, is the first."""

    def __init__(
        self,
        config: ModelConfig,
        dims: Mapping[str, int],
        lengths: Mapping[str, int],
        text_encoder: TextEncoder | None = None,
        *,
        backend: Backend = CPU,
        settings: object = None,
    ) -> None:
        super().__init__()
        self.config, self.backend, self.settings = config, backend, settings
        self.text_encoder = text_encoder
        self.dims = dict(dims) if text_encoder is None else {**dims, "text": text_encoder.dim}
        self.lengths = dict(lengths)
        numeric = MODALITIES if text_encoder is None else MODALITIES[1:]
        self.normalisation = nn.ModuleDict(
            {m: Normalisation(self.dims[m]) for m in numeric} if config.normalise == "train" else {}
        )
        self.build()

    def build(self) -> None:
        """Make the model's modules, of the attributes that `__init__` has set.

        Raises:
            ValueError: hyperparameters, or lengths of sequences, that do not fit together.
        """
        raise NotImplementedError

    def use(self, backend: Backend) -> None:
        """Let a backend compute encoders and dropout from here on."""
        self.backend = backend
        for module in self.modules():
            if isinstance(module, TransformerStack):
                module.use(backend)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> NetworkOutput:
        """Predict the sentiment of B samples, their class or their emotions.

        Args:
            text: features [B, T, D] or token ids [B, 3, T].
            audio: [B, T, D].
            vision: [B, T, D].
            rng: dropout RNG; None switches dropout off.
        """
        raise NotImplementedError

    def begin(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None) -> NetworkInputs:
        """The features that a model reads, of what `forward` was given."""
        tokens = None
        if self.text_encoder is not None:
            tokens, text = text, self.text_encoder(text)
        raw = dict(zip(MODALITIES, (text, audio, vision), strict=True))
        raw |= {m: normalise(raw[m]) for m, normalise in self.normalisation.items()}
        raw["text"] = self.backend.dropout(raw["text"], self.config.text_dropout, rng)
        features = {m: self.backend.drop_samples(x, self.config.modality_dropout, rng) for m, x in raw.items()}
        return NetworkInputs(features=features, text=text, tokens=tokens)
