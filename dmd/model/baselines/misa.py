"""MISA (Hazarika et al., ACM MM 2020): vectors of an utterance that modalities share, and vectors of their own.

The network of the published code (declare-lab/MISA@ec42fad, src/models.py): LSTMs read voice and face. The text is the
mean of the encoder's states where there is one (`use_bert`), and is read by LSTMs where it comes as features. Its two
discriminators are not here: no loss of the published training reads the one, and the other belongs to the adversarial
similarity that the paper's results do not use.
"""

import torch
from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.model.baselines.fusion import FusionLayer
from dmd.model.config import MODALITIES
from dmd.model.heads import prediction_of
from dmd.model.network import FUSED, Head, Network, NetworkOutput, heads_by_name
from dmd.model.padding import to_front, unpadded_mean, unpadded_range
from dmd.model.recurrent import BidirectionalLSTM, Recurrence

FUSION_WIDTH = 2048
"""Of the MLP of the fusion layer: PyTorch's default, which the published code takes."""
VECTORS = 2 * len(MODALITIES)
"""A private and a shared one of each modality."""
PUBLISHED_ORDER = ("text", "vision", "audio")
"""The order in which the published code stacks modalities before its fusion."""


class UtteranceEncoder(nn.Module):
    """Two bidirectional LSTMs with a layer norm between them; their last states are the utterance. Initial weights of
    the recurrences are orthogonal (src/solver.py).

    Args:
        features: of a step, and units of each direction.
    """

    STATES = 4
    """Last states that it gives: two LSTMs, each in two directions."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = BidirectionalLSTM(features, features)
        self.norm = nn.LayerNorm(2 * features)
        self.second = BidirectionalLSTM(2 * features, features)
        for module in self.modules():
            if isinstance(module, Recurrence):
                nn.init.orthogonal_(module.weight_hidden)

    def forward(self, x: Tensor, ranges: Tensor) -> Tensor:
        """Read the unpadded steps of sequences.

        Args:
            x: [B, T, features].
            ranges: begin and end of the unpadded steps, [B, 2].

        Returns:
            [B, STATES * features]: the last states ahead of both LSTMs, then those back.
        """
        x, lengths = to_front(x, ranges)
        states, first = self.first(x, lengths)
        _, second = self.second(self.norm(states), lengths)
        return torch.cat([first, second], dim=-1).flatten(1)


class MISA(Network):
    """Modality-invariant and -specific representations; see `Network` for what it takes.

    `compared` of its output holds `private_M`, `shared_M`, `origin_M` and `reconstructed_M` of each modality M, [B, d].
    """

    heads = heads_by_name(Head(name=FUSED, title="fused", about="private and shared vectors of all modalities"))

    def build(self) -> None:
        """See `Network.build`."""
        config = self.config
        config.check_heads()
        dim = config.dim
        sequences = MODALITIES if self.text_encoder is None else MODALITIES[1:]
        self.utterance_encoders = nn.ModuleDict({m: UtteranceEncoder(self.dims[m]) for m in sequences})
        widths = {m: (UtteranceEncoder.STATES if m in sequences else 1) * self.dims[m] for m in MODALITIES}
        self.projections = nn.ModuleDict(
            {m: nn.Sequential(nn.Linear(widths[m], dim), nn.ReLU(), nn.LayerNorm(dim)) for m in MODALITIES}
        )
        self.private_encoders = nn.ModuleDict({m: nn.Linear(dim, dim) for m in MODALITIES})
        self.shared_encoder = nn.Linear(dim, dim)
        self.decoders = nn.ModuleDict({m: nn.Linear(dim, dim) for m in MODALITIES})
        self.fusion = FusionLayer(
            dim,
            config.heads,
            width=FUSION_WIDTH,
            attn_rate=config.attn_dropout,
            relu_rate=config.relu_dropout,
            res_rate=config.res_dropout,
        )
        self.hidden = nn.Linear(VECTORS * dim, VECTORS // 2 * dim)
        self.out = nn.Linear(VECTORS // 2 * dim, config.outputs)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> NetworkOutput:
        """See `Network.forward`."""
        inputs = self.begin(text, audio, vision, rng)
        unpadded = inputs.unpadded()
        utterances = {
            m: encode(inputs.features[m], unpadded_range(unpadded[m], kernel=1))
            for m, encode in self.utterance_encoders.items()
        }
        if "text" not in utterances:
            utterances["text"] = unpadded_mean(inputs.features["text"], unpadded["text"])
        origin = {m: self.projections[m](utterances[m]) for m in MODALITIES}  # [B, d]
        private = {m: self.private_encoders[m](origin[m]).sigmoid() for m in MODALITIES}
        shared = {m: self.shared_encoder(origin[m]).sigmoid() for m in MODALITIES}
        reconstructed = {m: self.decoders[m](private[m] + shared[m]) for m in MODALITIES}
        vectors = [*(private[m] for m in PUBLISHED_ORDER), *(shared[m] for m in PUBLISHED_ORDER)]
        fused = self.fusion(torch.stack(vectors, dim=1), rng, self.backend).flatten(1)  # [B, 6d]
        hidden = self.backend.dropout(self.hidden(fused), self.config.output_dropout, rng).relu()  # [B, 3d]
        groups = {"private": private, "shared": shared, "origin": origin, "reconstructed": reconstructed}
        return NetworkOutput(
            predictions={FUSED: prediction_of(self.out(hidden))},
            representation=hidden,
            compared={f"{name}_{m}": of[m] for name, of in groups.items() for m in MODALITIES},
        )
