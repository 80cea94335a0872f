"""Self-MM (Yu et al., AAAI 2021): a prediction of all modalities and one of each alone, whose labels it makes itself.

    text -> its first step, or as audio and vision [B, D]     -.
    audio, vision -> LSTM -> last state -> linear  [B, out_m] -+-> dropout, linear, ReLU -> fused representation
    each alone -> dropout, linear, ReLU -> representation -> linear, ReLU, linear -> prediction

Source: thuiar/Self-MM@1786283, models/multiTask/SELF_MM.py. `dmd.losses.baselines.self_mm` is what it learns by.
"""

import torch
from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.interface import Backend
from dmd.model.baselines.self_mm_config import SelfMMConfig
from dmd.model.config import MODALITIES
from dmd.model.heads import prediction_of
from dmd.model.network import FUSED, Head, Network, NetworkOutput, heads_by_name
from dmd.model.padding import unpadded_mean, unpadded_range
from dmd.model.recurrent import LastState


def alone(modality: str) -> str:
    """The name of the head that predicts from one modality."""
    return f"{modality}_alone"


class LastStep(nn.Module):
    """The state of an LSTM behind the last unpadded step, through a linear layer.

    Args:
        features: of a step.
        hidden: channels of the LSTM.
        out: channels of the result.
    """

    def __init__(self, features: int, hidden: int, out: int) -> None:
        super().__init__()
        self.lstm = LastState(features, hidden)
        self.out = nn.Linear(hidden, out)

    def forward(self, x: Tensor, unpadded: Tensor, rng: DropoutRNG | None, backend: Backend) -> Tensor:
        """x [B, T, features] and which of its steps are unpadded [B, T] -> [B, out]."""
        state: Tensor = self.out(self.lstm(x, unpadded_range(unpadded, 1), rng, backend))
        return state


class Branch(nn.Module):
    """dropout, linear, ReLU to a representation; linear, ReLU, linear to a prediction."""

    def __init__(self, width: int, dim: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.represent = nn.Linear(width, dim)
        self.hidden = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, 1)

    def forward(self, x: Tensor, rng: DropoutRNG | None, backend: Backend) -> tuple[Tensor, Tensor, Tensor]:
        """Representation [B, dim], hidden layer [B, dim] and prediction [B] of x [B, width]."""
        representation = self.represent(backend.dropout(x, self.rate, rng)).relu()
        hidden = self.hidden(representation).relu()
        return representation, hidden, prediction_of(self.out(hidden))


class SelfMM(Network):
    """The network of Self-MM; its settings are a `SelfMMConfig`, see `Network` for the rest that it takes."""

    heads = heads_by_name(
        Head(name=FUSED, title="fused", about="all modalities: the model's prediction"),
        *(
            Head(name=alone(m), title=f"{m} alone", about=f"{m}, by labels that the model makes for it")
            for m in MODALITIES
        ),
    )

    def build(self) -> None:
        """See `Network.build`."""
        own = self.settings
        assert isinstance(own, SelfMMConfig)
        assert self.config.kind == "regression", self.config.task
        self._text_pooling = own.text_pooling
        if own.text_pooling == "auto":
            self._text_pooling = "lstm" if self.text_encoder is None else "first"
        lstms = {"text": own.text_lstm, "audio": own.audio_lstm, "vision": own.vision_lstm}
        widths = {"text": own.text_out, "audio": own.audio_out, "vision": own.vision_out}
        if self._text_pooling != "lstm":
            del lstms["text"]
            widths["text"] = self.dims["text"]
        self.states = nn.ModuleDict({m: LastStep(self.dims[m], hidden, widths[m]) for m, hidden in lstms.items()})
        rates = {FUSED: own.fused_dropout, "text": own.text_dropout}
        rates |= {"audio": own.audio_dropout, "vision": own.vision_dropout}
        inputs = {FUSED: sum(widths.values()), **widths}
        self.branches = nn.ModuleDict(
            {name: Branch(inputs[name], dim, rates[name]) for name, dim in own.widths.items()}
        )

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> NetworkOutput:
        """See `Network.forward`; `compared` holds the representations whose labels are made."""
        inputs = self.begin(text, audio, vision, rng)
        unpadded = inputs.unpadded()
        states = {m: read(inputs.features[m], unpadded[m], rng, self.backend) for m, read in self.states.items()}
        if "text" not in states:
            states["text"] = self._pooled(inputs.features["text"], unpadded["text"])
        states = {FUSED: torch.cat([states[m] for m in MODALITIES], dim=-1), **states}
        outputs = {name: branch(states[name], rng, self.backend) for name, branch in self.branches.items()}
        return NetworkOutput(
            predictions={FUSED: outputs[FUSED][2], **{alone(m): outputs[m][2] for m in MODALITIES}},
            representation=outputs[FUSED][1],
            compared={name: representation for name, (representation, _, _) in outputs.items()},
        )

    def _pooled(self, text: Tensor, unpadded: Tensor) -> Tensor:
        """One vector [B, D] of the text [B, T, D]; 0 where no step is unpadded."""
        if self._text_pooling == "mean":
            return unpadded_mean(text, unpadded)
        first = unpadded & (unpadded.cumsum(1) == 1)  # [B, T]
        return (text * first[..., None]).sum(1)
