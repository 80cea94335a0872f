"""Early fusion: LSTMs over the features of all modalities, step by step (EF-LSTM)."""

import torch
from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.model.baselines.scaled import scale
from dmd.model.config import MODALITIES
from dmd.model.heads import prediction_of
from dmd.model.network import FUSED, Head, Network, NetworkInputs, NetworkOutput, heads_by_name
from dmd.model.padding import resample, unpadded_range
from dmd.model.recurrent import LastState


class EarlyFusion(Network):
    """EF-LSTM of MMSA (thuiar/MMSA, EF_LSTM), after Williams et al., Recognizing Emotions in Video Using Multimodal DNN
    Feature Fusion (2018): features of a step side by side, `model.levels` layers of LSTMs, the last state, one hidden
    layer.

    Published for aligned data. Sequences of different lengths are brought to the steps of the text first: what of a
    sample is unpadded is averaged over as many equal parts as its text has steps. Sequences padded to one length are
    taken to be aligned, also where a sample's unpadded steps differ in number.

    Otherwise than there, features are normalised over a step's features, not over the samples of a batch, on which
    numbers would then depend; and the state behind the last unpadded step is read, not that behind the last one.
    """

    heads = heads_by_name(Head(name=FUSED, title="fused", about="the state behind the last step of all modalities"))

    def build(self) -> None:
        """See `Network.build`."""
        config, dim = self.config, self.config.dim
        self.scale = nn.ModuleDict({m: scale(self.dims[m]) for m in MODALITIES})
        self.recurrent = LastState(
            sum(self.dims[m] for m in MODALITIES), dim, layers=config.levels, rate=config.output_dropout
        )
        self.hidden = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, config.outputs)
        self._is_aligned = len(set(self.lengths.values())) == 1

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> NetworkOutput:
        """See `Network.forward`."""
        backend, rate = self.backend, self.config.output_dropout
        features, ranges = self._side_by_side(self.begin(text, audio, vision, rng))
        state = backend.dropout(self.recurrent(features, ranges, rng, backend), rate, rng)
        hidden = self.hidden(state).relu()
        logit = self.out(backend.dropout(hidden, rate, rng))
        return NetworkOutput(predictions={FUSED: prediction_of(logit)}, representation=hidden)

    def _side_by_side(self, inputs: NetworkInputs) -> tuple[Tensor, Tensor]:
        """Features of all modalities [B, T, D], and which steps are unpadded [B, 2]."""
        unpadded = inputs.unpadded()
        scaled = {m: self.scale[m](inputs.features[m]) * unpadded[m][..., None] for m in MODALITIES}
        if self._is_aligned:
            present = torch.stack([unpadded[m] for m in MODALITIES]).any(0)
            return torch.cat([scaled[m] for m in MODALITIES], -1), unpadded_range(present, 1)
        length = scaled["text"].shape[1]
        ranges = {m: unpadded_range(unpadded[m], 1) for m in MODALITIES}
        words = ranges["text"][:, 1] - ranges["text"][:, 0]
        counts = torch.where(words > 0, words, length)  # a text that is missing leaves the others their course
        parts = [resample(scaled[m], ranges[m], counts, length) for m in MODALITIES]
        return torch.cat(parts, -1), torch.stack([torch.zeros_like(counts), counts], 1)
