"""MulT, the multimodal transformer (Tsai et al., ACL 2019): each modality attends to the two others, then to itself.

The network of the published code (yaohungt/Multimodal-Transformer@a670936, src/models.py) with its three memory
encoders. The temporal convolutions have the widths that the configuration gives them, as in thuiar/MMSA@a94e65d.
"""

import torch
from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.model.config import MODALITIES
from dmd.model.convolution import conv_length, convolution
from dmd.model.dmd import CROSSMODAL
from dmd.model.heads import ResidualHead
from dmd.model.network import FUSED, Head, Network, NetworkOutput, heads_by_name
from dmd.model.padding import unpadded_range
from dmd.model.stack_plans import memory_plan, stack_plan
from dmd.model.transformer import TransformerStack


class MulT(Network):
    """Crossmodal transformers; see `Network` for what it takes.

    Raises:
        ValueError: a sequence is shorter than its convolution.
    """

    heads = heads_by_name(Head(name=FUSED, title="fused", about="the last steps of all three memory encoders"))

    def build(self) -> None:
        """See `Network.build`."""
        config, dim = self.config, self.config.dim
        self._kernels = {m: 1 if self.dims[m] == dim else config.kernels[m] for m in MODALITIES}
        steps = {m: conv_length(m, config, self.dims[m], self.lengths[m]) for m in MODALITIES}
        self.convolution = nn.ModuleDict({m: convolution(m, config, self.dims[m]) for m in MODALITIES})
        targets, sources = zip(*CROSSMODAL, strict=True)
        self.crossmodal_encoders = TransformerStack(
            stack_plan(config, steps, targets, sources, last_step=False), self.backend
        )
        self.memory_encoders = TransformerStack(memory_plan(config, steps), self.backend)
        self.head = ResidualHead(6 * dim, 6 * dim, config.output_dropout, config.outputs)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> NetworkOutput:
        """See `Network.forward`."""
        inputs = self.begin(text, audio, vision, rng)
        x = {m: self.convolution[m](inputs.features[m]) for m in MODALITIES}  # [B, T_m, d]
        of_sources = of_own = None
        if self.config.masked_padding:
            ranges = {m: unpadded_range(steps, self._kernels[m]) for m, steps in inputs.unpadded().items()}
            of_sources, of_own = [ranges[m] for _, m in CROSSMODAL], [ranges[m] for m in MODALITIES]
        last = self.backend.encode_pairs(
            self.crossmodal_encoders.tensors(),
            self.memory_encoders.tensors(),
            [x[target] for target, _ in CROSSMODAL],
            [x[source] for _, source in CROSSMODAL],
            key_ranges=(of_sources, of_own),
            rng=rng,
        )  # [B, 2d] of each modality
        output = self.head(torch.cat(last, dim=-1), rng, self.backend)
        return NetworkOutput(predictions={FUSED: output.logit}, representation=output.residual)
