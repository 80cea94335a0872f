"""The DMD network, in the order of Fig. 2 of the paper: convolve, decouple, distil shared, distil private, fuse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmd.kernels.cpu import CPU
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import StackPlan
from dmd.kernels.interface import Backend
from dmd.kernels.portable import side_by_side
from dmd.model.config import MODALITIES, ModelConfig
from dmd.model.convolution import TemporalConvolution
from dmd.model.decouple import Decoupled, Decoupler, Undecoupled
from dmd.model.heads import ResidualHead
from dmd.model.normalisation import Normalisation
from dmd.model.padding import unpadded_range, unpadded_steps
from dmd.model.text import TextEncoder
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


@dataclass(frozen=True, kw_only=True)
class Head:
    """A prediction head. Evaluation, objective, reports and predictions read `HEADS`."""

    name: str
    """In `DMDOutput.predictions`, where the network puts what the head says; in JSON, logs, columns of predictions."""
    title: str
    """In tables and figures."""
    about: str
    """What it predicts from."""


HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head(name="fused", title="fused", about="both spaces of all modalities: the model's prediction"),
        Head(name="shared", title="shared", about="what the shared encoders make of all homogeneous features"),
        *(Head(name=f"{m}_homo", title=f"{m}, homo", about=f"homogeneous features of {m}") for m in MODALITIES),
        *(
            Head(name=f"{m}_hetero", title=f"{m}, hetero", about=f"heterogeneous features of {m}, reinforced")
            for m in MODALITIES
        ),
    )
}
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
class DMDOutput(SampleOutput):
    """Everything that the objective and the reports read."""

    decoupled: Decoupled
    """Features [B, T_m, d] of every modality."""
    fused_repr: Tensor
    """[B, 9d], what the fused prediction is a linear function of."""


class DMD(nn.Module):
    """Decoupled Multimodal Distilling (CVPR 2023), without the GD-Units, which belong to the objective.

    Args:
        config: hyperparameters.
        dims: feature dimension of each modality; that of the text is the encoder's where there is one.
        lengths: time steps of each modality, as padded in the shards.
        text_encoder: turns token ids into features; None where the shards hold text features.
        backend: what computes encoders and dropout; `choose_execution` chooses one for a device.

    Raises:
        ValueError: a sequence is shorter than its convolution.
    """

    def __init__(
        self,
        config: ModelConfig,
        dims: Mapping[str, int],
        lengths: Mapping[str, int],
        text_encoder: TextEncoder | None = None,
        *,
        backend: Backend = CPU,
    ) -> None:
        super().__init__()
        self.config, self.backend = config, backend
        self.text_encoder = text_encoder
        dim = config.dim
        dims = dict(dims) if text_encoder is None else {**dims, "text": text_encoder.dim}
        steps = {m: conv_length(m, config, dims[m], lengths[m]) for m in MODALITIES}
        numeric = MODALITIES if text_encoder is None else MODALITIES[1:]
        self.normalisation = nn.ModuleDict(
            {m: Normalisation(dims[m]) for m in numeric} if config.normalise == "train" else {}
        )
        self.convolution = nn.ModuleDict(
            {
                m: nn.Identity() if dims[m] == dim else TemporalConvolution(dims[m], dim, config.kernels[m])
                for m in MODALITIES
            }
        )
        self.decoupler = Decoupler(dim) if config.decoupling else Undecoupled()
        self.margin = nn.ModuleDict({m: nn.Linear(steps[m] * dim, dim) for m in MODALITIES})
        self._kernels = {m: 1 if dims[m] == dim else config.kernels[m] for m in MODALITIES}
        self.shared_encoders = self._stack(dim, MODALITIES, MODALITIES, steps, last_step=True)
        targets, sources = zip(*CROSSMODAL, strict=True)
        self.crossmodal_encoders = (
            self._stack(dim, targets, sources, steps, last_step=False) if config.crossmodal else None
        )
        self.memory_encoders = self._stack(2 * dim, MODALITIES, MODALITIES, steps, last_step=True)
        rate, outputs = config.output_dropout, config.outputs
        self.homo_heads = nn.ModuleDict({m: ResidualHead(steps[m] * dim, dim, rate, outputs) for m in MODALITIES})
        self.hetero_heads = nn.ModuleDict({m: ResidualHead(2 * dim, 2 * dim, rate, outputs) for m in MODALITIES})
        self.shared_head = ResidualHead(3 * dim, 3 * dim, rate, outputs)
        self.gates = nn.ModuleDict({m: nn.Linear(2 * dim, 2 * dim) for m in MODALITIES})
        self.shared_gate = nn.Linear(3 * dim, 3 * dim)
        self.fused_head = ResidualHead(9 * dim, 9 * dim, rate, outputs)

    def _stack(
        self,
        dim: int,
        targets: tuple[str, ...],
        sources: tuple[str, ...],
        steps: Mapping[str, int],
        *,
        last_step: bool,
    ) -> TransformerStack:
        config = self.config
        memory = dim != config.dim
        plan = StackPlan(
            dim=dim,
            heads=config.heads,
            levels=max(config.levels, 3) if memory else config.levels,
            queries=tuple(steps[m] for m in targets),
            keys=tuple(steps[m] for m in sources),
            attn_rates=tuple(config.attn_dropout if memory else config.source_dropout[m] for m in sources),
            relu_rate=config.relu_dropout,
            res_rate=config.res_dropout,
            embed_rate=config.embed_dropout,
            last_step=last_step,
        )
        return TransformerStack(plan, self.backend)

    def use(self, backend: Backend) -> None:
        """Let a backend compute encoders and dropout from here on."""
        self.backend = backend
        for stack in (self.shared_encoders, self.crossmodal_encoders, self.memory_encoders):
            if stack is not None:
                stack.use(backend)

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor, rng: DropoutRNG | None = None) -> DMDOutput:
        """Predict the sentiment, or its class, of B samples.

        Args:
            text: features [B, T, D] or token ids [B, 3, T].
            audio: [B, T, D].
            vision: [B, T, D].
            rng: dropout RNG; None switches dropout off.
        """
        tokens, backend = text, self.backend
        if self.text_encoder is not None:
            text = self.text_encoder(tokens)
        raw = dict(zip(MODALITIES, (text, audio, vision), strict=True))
        raw |= {m: normalise(raw[m]) for m, normalise in self.normalisation.items()}
        raw["text"] = backend.dropout(raw["text"], self.config.text_dropout, rng)
        features = {m: backend.drop_samples(x, self.config.modality_dropout, rng) for m, x in raw.items()}
        key_ranges = self._key_ranges(tokens, text, features) if self.config.masked_padding else None
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
        predictions["fused"] = fused_output.logit
        predictions["shared"] = self.shared_head(shared, rng, backend).logit
        predictions.update({f"{m}_homo": homo[m].logit for m in MODALITIES})
        predictions.update({f"{m}_hetero": hetero[m].logit for m in MODALITIES})
        return DMDOutput(
            predictions=predictions,
            decoupled=decoupled,
            margin_features=margin,
            homo_repr={m: homo[m].hidden for m in MODALITIES},
            hetero_repr={m: hetero[m].residual for m in MODALITIES},
            fused_repr=fused_output.residual,
        )

    def _key_ranges(self, tokens: Tensor, text: Tensor, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{m: [B, 2]}, unpadded steps of the convolved modalities; a modality that was dropped has none.

        Args:
            tokens: what the model was given as text.
            text: the same as features, before their dropout.
            features: what is convolved, of which the text has lost elements to its dropout.
        """
        unpadded = {m: unpadded_steps(features[m]) for m in MODALITIES}
        kept = unpadded["text"].any(1, keepdim=True)
        unpadded["text"] = unpadded_steps(text) & kept
        if self.text_encoder is not None:
            unpadded["text"] &= tokens[:, 1] != 0
        return {m: unpadded_range(unpadded[m], self._kernels[m]) for m in MODALITIES}

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


def conv_length(modality: str, config: ModelConfig, dim: int, length: int) -> int:
    """Time steps that the temporal convolution leaves; a modality that has `config.dim` channels skips it."""
    if dim == config.dim:
        return length
    left = length - config.kernels[modality] + 1
    if left < 1:
        raise ValueError(
            f"{modality} sequences have {length} steps, fewer than model.kernel_{modality}={config.kernels[modality]}; "
            f"set model.kernel_{modality} to at most {length}"
        )
    return left
