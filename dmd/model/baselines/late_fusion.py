"""Late fusion: a small network of each modality, and one that reads what they make of it (LF-DNN)."""

import torch
from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.interface import Backend
from dmd.model.baselines.scaled import scale
from dmd.model.heads import prediction_of
from dmd.model.network import FUSED, Head, Network, NetworkOutput, heads_by_name
from dmd.model.padding import unpadded_mean, unpadded_range
from dmd.model.recurrent import LastState

_POOLED = ("audio", "vision")


class _Pooled(nn.Module):
    """Three layers over the mean of a modality's steps."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.scale = scale(features)
        self.layers = nn.ModuleList(nn.Linear(features if number == 0 else dim, dim) for number in range(3))

    def forward(self, mean: Tensor, rate: float, rng: DropoutRNG | None, backend: Backend) -> Tensor:
        """[B, features] -> [B, dim]."""
        x = backend.dropout(self.scale(mean), rate, rng)
        for layer in self.layers:
            x = layer(x).relu()
        return x


class LateFusion(Network):
    """LF-DNN of MMSA (thuiar/MMSA, LF_DNN), after Cambria et al., Benchmarking Multimodal Sentiment Analysis (2017): an
    LSTM over the text, three layers over the mean of voice and of face, two layers over what they give.

    All of them have `model.dim` channels. Otherwise than there, features are normalised over a sample's features, not
    over the samples of a batch, on which numbers would then depend; means and the last state are of unpadded steps; and
    the text's dropout is on its features.
    """

    heads = heads_by_name(Head(name=FUSED, title="fused", about="the summaries of the three modalities"))

    def build(self) -> None:
        """See `Network.build`."""
        config, dim = self.config, self.config.dim
        self.text = LastState(self.dims["text"], dim)
        self.text_out = nn.Linear(dim, dim)
        self.pooled = nn.ModuleDict({m: _Pooled(self.dims[m], dim) for m in _POOLED})
        self.fusion = nn.ModuleList([nn.Linear(3 * dim, dim), nn.Linear(dim, dim)])
        self.out = nn.Linear(dim, config.outputs)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> NetworkOutput:
        """See `Network.forward`."""
        backend, rate = self.backend, self.config.output_dropout
        inputs = self.begin(text, audio, vision, rng)
        features, unpadded = inputs.features, inputs.unpadded()
        summaries = [
            self.pooled[m](unpadded_mean(features[m], unpadded[m]), rate, rng, backend) for m in _POOLED
        ]  # each [B, d]
        summaries.append(self.text_out(self.text(features["text"], unpadded_range(unpadded["text"], 1), rng, backend)))
        x = backend.dropout(torch.cat(summaries, -1), rate, rng)
        for layer in self.fusion:
            x = layer(x).relu()
        logit = self.out(x)
        return NetworkOutput(predictions={FUSED: prediction_of(logit)}, representation=x)
