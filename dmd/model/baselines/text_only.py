"""The text alone: how far a model comes without voice and face."""

from torch import Tensor

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.model.convolution import conv_length, convolution
from dmd.model.heads import ResidualHead
from dmd.model.network import FUSED, Head, Network, NetworkOutput, heads_by_name
from dmd.model.padding import unpadded_range
from dmd.model.stack_plans import stack_plan
from dmd.model.transformer import TransformerStack


class TextOnly(Network):
    """The text's own way through a DMD: temporal convolution, transformer encoder, residual head.

    The head reads the last unpadded step, and attention never sees padded ones, as with `model.masked_padding` there.
    Voice and face are not read.

    Raises:
        ValueError: a text that is shorter than its convolution.
    """

    heads = heads_by_name(Head(name=FUSED, title="fused", about="the last step of the encoded text"))

    def build(self) -> None:
        """See `Network.build`."""
        config = self.config
        features, dim = self.dims["text"], config.dim
        steps = conv_length("text", config, features, self.lengths["text"])
        self.convolution = convolution("text", config, features)
        self._kernel = 1 if features == dim else config.kernel_text
        plan = stack_plan(config, {"text": steps}, ("text",), ("text",), last_step=True)
        self.encoder = TransformerStack(plan, self.backend)
        self.head = ResidualHead(dim, dim, config.output_dropout, config.outputs)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> NetworkOutput:
        """See `Network.forward`."""
        inputs = self.begin(text, audio, vision, rng)
        ranges = unpadded_range(inputs.unpadded()["text"], self._kernel)
        (last,) = self.encoder([self.convolution(inputs.features["text"])], key_ranges=[ranges], rng=rng)  # [B, d]
        output = self.head(last, rng, self.backend)
        return NetworkOutput(predictions={FUSED: output.logit}, representation=output.residual)
