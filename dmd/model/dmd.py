"""The DMD network, in the order of Fig. 2 of the paper: convolve, decouple, distil shared, distil private, fuse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.portable import side_by_side
from dmd.model.config import MODALITIES
from dmd.model.convolution import conv_length, convolution
from dmd.model.decouple import Decoupled, Decoupler, Undecoupled
from dmd.model.heads import ResidualHead
from dmd.model.network import FUSED, Head, Network, NetworkInputs, NetworkOutput, heads_by_name
from dmd.model.padding import unpadded_range
from dmd.model.stack_plans import memory_plan, stack_plan
from dmd.model.transformer import TransformerStack

CROSSMODAL = (
    ("text", "audio"),
    ("text", "vision"),
    ("audio", "text"),
    ("audio", "vision"),
    ("vision", "text"),
    ("vision", "audio"),
)
"""(target, source) of the six crossmodal encoders; two consecutive ones feed one memory encoder."""
PUBLISHED_ORDER = ("text", "vision", "audio")
"""The order in which the published code concatenates modalities before its fusion layers."""


HEADS = heads_by_name(
    Head(name=FUSED, title="fused", about="both spaces of all modalities: the model's prediction"),
    Head(name="shared", title="shared", about="what the shared encoders make of all homogeneous features"),
    *(Head(name=f"{m}_homo", title=f"{m}, homo", about=f"homogeneous features of {m}") for m in MODALITIES),
    *(
        Head(name=f"{m}_hetero", title=f"{m}, hetero", about=f"heterogeneous features of {m}, reinforced")
        for m in MODALITIES
    ),
)
"""The eight predictions: the fused one, the one from all shared features, and one per modality and space."""


@dataclass(frozen=True, kw_only=True)
class SampleOutput:
    """What has no time steps of the network's output, some thousand bytes a sample. B samples, d channels."""

    predictions: dict[str, Tensor]
    """{head: [B], or logits [B, classes]} for each of `HEADS`."""
    margin_features: dict[str, Tensor]
    """{m: [B, d]}, what the margin loss compares."""
    homo_repr: dict[str, Tensor]
    """{m: [B, d]}, homogeneous representations (after their ReLU)."""
    hetero_repr: dict[str, Tensor]
    """{m: [B, 2d]}, heterogeneous representations."""


@dataclass(frozen=True, kw_only=True)
class DMDOutput(SampleOutput, NetworkOutput):
    """Everything that the objective and the reports read. `representation` is [B, 9d], of which the fused prediction is
    a linear function."""

    decoupled: Decoupled
    """Features [B, T_m, d] of every modality."""

    @property
    def spaces(self) -> dict[str, dict[str, Tensor]]:
        """What the GD-Units `homo` and `hetero` compare."""
        return {"homo": self.homo_repr, "hetero": self.hetero_repr}


class DMD(Network):
    """Decoupled Multimodal Distilling (CVPR 2023), without the GD-Units, which belong to the objective.

    Raises:
        ValueError: a sequence is shorter than its convolution.
    """

    heads = HEADS

    def build(self) -> None:
        """See `Network.build`."""
        config, dim = self.config, self.config.dim
        steps = {m: conv_length(m, config, self.dims[m], self.lengths[m]) for m in MODALITIES}
        self.convolution = nn.ModuleDict({m: convolution(m, config, self.dims[m]) for m in MODALITIES})
        self.decoupler = Decoupler(dim) if config.decoupling else Undecoupled()
        self.margin = nn.ModuleDict({m: nn.Linear(steps[m] * dim, dim) for m in MODALITIES})
        self._kernels = {m: 1 if self.dims[m] == dim else config.kernels[m] for m in MODALITIES}
        self.shared_encoders = TransformerStack(
            stack_plan(config, steps, MODALITIES, MODALITIES, last_step=True), self.backend
        )
        targets, sources = zip(*CROSSMODAL, strict=True)
        self.crossmodal_encoders = (
            TransformerStack(stack_plan(config, steps, targets, sources, last_step=False), self.backend)
            if config.crossmodal
            else None
        )
        self.memory_encoders = TransformerStack(memory_plan(config, steps), self.backend)
        rate, outputs = config.output_dropout, config.outputs
        self.homo_heads = nn.ModuleDict({m: ResidualHead(steps[m] * dim, dim, rate, outputs) for m in MODALITIES})
        self.hetero_heads = nn.ModuleDict({m: ResidualHead(2 * dim, 2 * dim, rate, outputs) for m in MODALITIES})
        self.shared_head = ResidualHead(3 * dim, 3 * dim, rate, outputs)
        self.gates = nn.ModuleDict({m: nn.Linear(2 * dim, 2 * dim) for m in MODALITIES})
        self.shared_gate = nn.Linear(3 * dim, 3 * dim)
        self.fused_head = ResidualHead(9 * dim, 9 * dim, rate, outputs)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> DMDOutput:
        """See `Network.forward`."""
        backend, inputs = self.backend, self.begin(text, audio, vision, rng)
        features = inputs.features
        key_ranges = self._key_ranges(inputs) if self.config.masked_padding else None
        origin = {m: self.convolution[m](features[m]) for m in MODALITIES}
        decoupled = self.decoupler(origin)
        predictions: dict[str, Tensor] = {}

        homo = {m: self.homo_heads[m](decoupled.shared[m].flatten(1), rng, backend) for m in MODALITIES}
        margin = {m: self.margin[m](decoupled.shared[m].transpose(1, 2).flatten(1)) for m in MODALITIES}
        shared_last = self.shared_encoders(
            [decoupled.shared[m] for m in MODALITIES], key_ranges=_of(key_ranges, MODALITIES), rng=rng
        )
        shared = torch.cat([shared_last[MODALITIES.index(m)] for m in PUBLISHED_ORDER], dim=-1)  # [B, 3d]

        memory = dict(zip(MODALITIES, self._reinforce(decoupled.private, key_ranges, rng), strict=True))  # {m: [B, 2d]}
        hetero = {m: self.hetero_heads[m](memory[m], rng, backend) for m in MODALITIES}

        gated = [torch.sigmoid(self.gates[m](memory[m])) for m in PUBLISHED_ORDER]
        fused = torch.cat([*gated, torch.sigmoid(self.shared_gate(shared))], dim=-1)  # [B, 9d]
        fused_output = self.fused_head(fused, rng, backend)
        predictions[FUSED] = fused_output.logit
        predictions["shared"] = self.shared_head(shared, rng, backend).logit
        predictions.update({f"{m}_homo": homo[m].logit for m in MODALITIES})
        predictions.update({f"{m}_hetero": hetero[m].logit for m in MODALITIES})
        return DMDOutput(
            predictions=predictions,
            decoupled=decoupled,
            margin_features=margin,
            homo_repr={m: homo[m].hidden for m in MODALITIES},
            hetero_repr={m: hetero[m].residual for m in MODALITIES},
            representation=fused_output.residual,
        )

    def _key_ranges(self, inputs: NetworkInputs) -> dict[str, Tensor]:
        """{m: [B, 2]}, unpadded steps of the convolved modalities; a modality that was dropped has none."""
        return {m: unpadded_range(unpadded, self._kernels[m]) for m, unpadded in inputs.unpadded().items()}

    def _reinforce(
        self, private: Mapping[str, Tensor], key_ranges: Mapping[str, Tensor] | None, rng: DropoutRNG | None
    ) -> list[Tensor]:
        """What the memory encoders make of the crossmodal encoders' outputs, two by two: [B, 2d] of each modality."""
        targets = [private[target] for target, _ in CROSSMODAL]
        own = _of(key_ranges, MODALITIES)
        if self.crossmodal_encoders is None:
            return self.memory_encoders(side_by_side(targets), key_ranges=own, rng=rng)
        return self.backend.encode_pairs(
            self.crossmodal_encoders.tensors(),
            self.memory_encoders.tensors(),
            targets,
            [private[source] for _, source in CROSSMODAL],
            key_ranges=(_of(key_ranges, [source for _, source in CROSSMODAL]), own),
            rng=rng,
        )


def _of(key_ranges: Mapping[str, Tensor] | None, modalities: Sequence[str]) -> list[Tensor] | None:
    """The unpadded steps of the sequences that a stage's encoders attend to; None: all are."""
    return None if key_ranges is None else [key_ranges[m] for m in modalities]
