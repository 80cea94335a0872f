"""A trained model: network, objective and what they were trained with; needs neither DeepSpeed nor Ray.

`dmd.load` gives one, and `dmd evaluate`, `predict`, `missing`, `report` and `export` work on one.

import dmd
model = dmd.load("exported")                       # or the directory of a run
result = model.predict(text=text, audio=audio, vision=None)    # of any length; None: missing
result.sentiment                                   # [N]; of a classifier: classes, probabilities, names
result.edges["homo"]                               # [N, 6], in the order of dmd.model.graph.PAIRS; of DMD
model.features(text=text, audio=audio, vision=vision).fused    # [N, n]
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from data_shards.sources.mmsa import Nonfinite
from dmd.config import Config
from dmd.config.loading import written_config
from dmd.documents import check_data, check_text_base
from dmd.kernels.backend import float32_products
from dmd.kernels.common.cards import current_device
from dmd.metrics import Scoring
from dmd.metrics.emotions import says_emotions
from dmd.model.config import MODALITIES
from dmd.model.network import NetworkOutput
from dmd.model.quantize import check_quantized
from dmd.model.text import TextEncoder, build_text_encoder, load_text_encoder, stands_on_base
from dmd.model.text_base import TextBase, check_base
from dmd.system.declared import check_declared
from dmd.system.input_arrays import InputFitter, Inputs
from dmd.system.modules import BATCH_SIZE, Modules

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a trained model is, beside its weights; plain values, for JSON."""

    config: dict[str, Any]
    """The config of the training, as `dmd.config.loading.config_to_dict` gives it."""
    data: dict[str, Any]
    """`name`, `generation`, `text_kind`, `dims` and `lengths` of the data that it was trained on, and what its labels
    are (`dmd.data.targets.scoring_of`)."""
    text_encoder: dict[str, Any] | None
    """Configuration of the text encoder; None where the text comes as features."""
    source: dict[str, Any]
    """Where the weights come from: `run`, `step`, `versions`; where they are the mean of several checkpoints also
    `averaged`, the steps of these, of which `step` is the last."""
    text_base: dict[str, Any] | None = None
    """`name` and `sha256` of the text encoder's own weights, where the model stands on them (LoRA, quantised)."""

    def __post_init__(self) -> None:
        for name in ("config", "data", "source"):
            if not isinstance(getattr(self, name), dict):
                raise ValueError(f"the model's {name} is {getattr(self, name)!r:.40}, no object; export the run again")
        if self.text_encoder is not None and not isinstance(self.text_encoder, dict):
            raise ValueError(f"the model's text_encoder is {self.text_encoder!r:.40}, no object; export the run again")
        if not isinstance(self.averaged, list) or not all(type(step) is int for step in self.averaged):
            raise ValueError(f"the model's averaged is {self.averaged!r:.40}, no list of steps; export the run again")
        check_data(self.data, "the model's data")
        check_text_base(self.text_base, "the model")
        if (self.text_encoder is None) != (self.data["text_kind"] == "features"):
            raise ValueError("the model has token ids and no text encoder, or the other way; export the run again")

    @property
    def averaged(self) -> list[int]:
        """The steps of the checkpoints whose mean the weights are; empty: they are those of one."""
        steps: list[int] = self.source.get("averaged", [])
        return steps

    def shape(self, modality: str) -> tuple[int, int]:
        """Shape of one sample of a modality: [T, D], or [3, T] for token ids."""
        steps = int(self.data["lengths"][modality])
        if modality == "text" and self.data["text_kind"] == "tokens":
            return 3, steps
        return steps, int(self.data["dims"][modality])

    def fitter(self, nonfinite: Nonfinite = "refuse") -> InputFitter:
        """What makes inputs for this model of a user's arrays."""
        return InputFitter(self.data, text_encoder=self.text_encoder, nonfinite=nonfinite)


def config_of(card: ModelCard) -> Config:
    """The config of a model's training."""
    return written_config(card.config)


class NoSuchAnswer(ValueError, AttributeError):
    """A model predicts something else; also an AttributeError, so that `hasattr` says what a prediction has."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the model says about N samples; tensors on the CPU, float32 (sentiments that are scaled: float64)."""

    heads: dict[str, Tensor]
    """{head: [N], sentiments in the units of the data's own labels; or logits [N, outputs]} for each head of the model,
    `fused` first."""
    edges: dict[str, Tensor]
    """{"homo", "hetero": [N, 6]}, weights of the GD-Units in the order of `dmd.model.graph.PAIRS`; {} of a model that
    has none."""
    scoring: Scoring = field(default_factory=Scoring)
    spread: Tensor | None = None
    """Of an ensemble: standard deviation (n - 1) over its members of the sentiment [N], in the units of the labels; or
    of each probability [N, outputs]."""
    uncertainty: Tensor | None = None
    """Of an ensemble that is calibrated (`dmd.inference.ensemble.Calibration`): standard deviation of the sentiment's
    error [N]; or the probability that the class [N], or what is said of each emotion [N, L], is wrong."""

    @property
    def sentiment(self) -> Tensor:
        """The fused prediction in the units of the data's own labels, [N]. Raises `NoSuchAnswer` for a model that
        predicts classes or emotions."""
        if self.scoring.kind != "regression":
            what = "classes" if self.scoring.kind == "classes" else "emotions"
            raise NoSuchAnswer(f"this model predicts {what}, no sentiment; read `{what}` or `probabilities`")
        return self.heads["fused"]

    @property
    def probabilities(self) -> Tensor:
        """Probability of each class or emotion by the fused head, [N, outputs]; those of classes add up to one. Raises
        `NoSuchAnswer` for a regression."""
        if self.scoring.kind == "regression":
            raise NoSuchAnswer("this model predicts the sentiment, no classes; read `sentiment`")
        logits = self.heads["fused"]
        return logits.softmax(-1) if self.scoring.kind == "classes" else logits.sigmoid()

    def answers(self, head: str) -> Tensor:
        """What a head says of each sample: sentiments [N], class numbers [N] int64, or emotions [N, L] bool."""
        values = self.heads[head]
        if self.scoring.kind == "regression":
            return values
        return values.argmax(-1) if self.scoring.kind == "classes" else says_emotions(values)

    @property
    def names(self) -> list[str]:
        """What the classes or emotions are called, in the order of `probabilities`."""
        return self.scoring.titles

    @property
    def classes(self) -> Tensor:
        """The most probable class of each sample, [N] int64. Raises `NoSuchAnswer` for a model that predicts
        none."""
        if self.scoring.kind == "multilabel":
            raise NoSuchAnswer("this model predicts emotions, of which a sample has any number; read `emotions`")
        return self.probabilities.argmax(-1)

    @property
    def emotions(self) -> Tensor:
        """Whether each sample has each emotion by the fused head, [N, L] bool. Raises `NoSuchAnswer` for a model that
        predicts none."""
        if self.scoring.kind != "multilabel":
            raise NoSuchAnswer("this model predicts no emotions; read `sentiment`, or `classes`")
        return says_emotions(self.heads["fused"])


@dataclass(frozen=True, kw_only=True)
class Representations:
    """What the network makes of N samples before it predicts; tensors on the CPU, float32. d is `model.dim`."""

    common: dict[str, Tensor]
    """{modality: [N, d]}, of DMD's homogeneous (modality-irrelevant) space, which the GD-Unit `homo` compares; {} of
    another model."""
    private: dict[str, Tensor]
    """{modality: [N, 2d]}, of DMD's heterogeneous (modality-exclusive) space after the crossmodal encoders, which the
    GD-Unit `hetero` compares; {} of another model."""
    fused: Tensor
    """[N, n], what the fused prediction is made of; of DMD [N, 9d], of both spaces and all modalities, of which the
    prediction is a linear function."""


class InferenceModules(Modules):
    """The modules with the forward pass of an exported program."""

    def forward(self, text: Tensor, audio: Tensor, vision: Tensor) -> tuple[Tensor, ...]:
        """Predictions [B, heads], on the scale of the shards, or [B, heads, outputs] in the order of the heads, and the
        edges of each GD-Unit, [B, 6], of a model that has some."""
        output = self.network(text, audio, vision)  # in float32, on whatever device the program will run
        return self.all_heads(output), *self.objective.edges(output).values()


class TrainedModel:
    """A trained model in evaluation mode on one device.

    Args:
        card: what the model is.
        weights: tensors under the names of a checkpoint.
        device: where it runs.
        validates: weights ask for gradients as in a training, so that an evaluation has the very digits of the
            training's validation: torch multiplies in another order for weights that ask for none.
        text_encoder: where the text encoder's own weights are, of a model that names them; None: where the
            card says.

    Raises:
        ValueError: weights that are not those of the card's model, or a base that is not here or not the card's.
    """

    def __init__(
        self,
        card: ModelCard,
        weights: Mapping[str, Tensor],
        device: torch.device,
        *,
        validates: bool = False,
        text_encoder: str | None = None,
    ) -> None:
        self.card = card
        self.device = device
        self.config: Config = config_of(card)
        text = self.config.text
        if (card.text_base is not None) != (card.text_encoder is not None and stands_on_base(text.lora, text.quantize)):
            raise ValueError(
                "the model stands on a text encoder and names none, or the other way; export the run again"
            )
        check_declared(lambda: self._build(self._fresh_encoder()), weights, card.config, card.text_encoder)
        if card.text_base is None and text_encoder is not None:
            raise ValueError(f"the text encoder {text_encoder!r} was named, but the model holds all its weights itself")
        self.modules = self._build(
            self._fresh_encoder() if card.text_base is None else self._loaded_encoder(text_encoder)
        )
        self.modules.load_state_dict(weights)
        self.modules.to(device).eval()
        if self.modules.network.text_encoder is not None:
            check_quantized(self.modules.network.text_encoder.network, otherwise="run it on another device")
        if not validates:
            self.modules.requires_grad_(False)

    def _fresh_encoder(self) -> TextEncoder | None:
        settings, text = self.card.text_encoder, self.config.text
        if settings is None:
            return None
        return build_text_encoder(settings, frozen=text.frozen, lora=text.lora, quantize=text.quantize)

    def _loaded_encoder(self, name: str | None) -> TextEncoder:
        """The text encoder on its base. Nothing is fetched that a card names: it may come from anybody."""
        text, base = self.config.text, TextBase(**(self.card.text_base or {}))
        try:
            encoder = load_text_encoder(
                name or base.name,
                frozen=text.frozen,
                lora=text.lora,
                quantize=text.quantize,
                config=self.card.text_encoder,
                local=name is None,
            )
        except ValueError as error:
            raise ValueError(
                f"the model stands on the weights of the text encoder {name or base.name}, which are not here: "
                f"{error}; name them: --text-encoder PATH, dmd.load(..., text_encoder=PATH)"
            ) from error
        assert encoder.base is not None
        check_base(base, encoder.base, "the model")
        self.card = replace(self.card, text_base=asdict(encoder.base))
        return encoder

    def _build(self, encoder: TextEncoder | None) -> InferenceModules:
        card = self.card
        return InferenceModules(
            self.config,
            data=card.data,
            text_encoder=encoder,
            device=self.device,
            binding=False,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Where passes of the model run: its device and its float32 products, for a while."""
        with current_device(self.device), float32_products(tf32=self.modules.execution.tf32):
            yield

    @torch.inference_mode()
    def output(self, inputs: Inputs) -> NetworkOutput:
        """The network's full output (features, representations) for a batch."""
        text, audio, vision = (inputs.arrays[m].to(self.device) for m in MODALITIES)
        encoder = self.modules.network.text_encoder
        found: list[NetworkOutput] = []

        def run() -> None:
            with self.running(), _masked_output(encoder, inputs.text_mask):
                found.append(self.modules.output(text, audio, vision))

        reason = self.modules.try_kernels(run, asked_for=False)
        if reason:
            warnings.warn(f"{reason}; going on in plain torch", stacklevel=2)
            run()
        return found[0]

    def predict(
        self, *, text: Any = None, audio: Any = None, vision: Any = None, nonfinite: Nonfinite = "refuse"
    ) -> Prediction:
        """Predict N samples, or one without its first axis. What is cut, missing or zeroed is a warning in the log.

        Args:
            text: features [N, T, D], or token ids [N, 3, T] where the model has a text encoder: numpy, torch on any
                device, or lists; any T, or a list of arrays of different T; left out, or None in a list, where it is
                missing.
            audio: [N, T, D], the same.
            vision: [N, T, D], the same.
            nonfinite: "zero" makes 0 of NaN and infinities.

        Raises:
            ValueError: other features than those of the training, values that are not finite, or nothing at all.
        """
        batches = fitted_batches(self.card, {"text": text, "audio": audio, "vision": vision}, nonfinite)
        return join([self.answer(inputs) for inputs in batches])

    def answer(self, inputs: Inputs) -> Prediction:
        """The predictions and edges for a batch."""
        return self.read(self.output(inputs))

    def features(
        self, *, text: Any = None, audio: Any = None, vision: Any = None, nonfinite: Nonfinite = "refuse"
    ) -> Representations:
        """The representations of N samples, those of which TensorBoard's projector shows the validation split.

        Args and errors are those of `predict`.
        """
        batches = fitted_batches(self.card, {"text": text, "audio": audio, "vision": vision}, nonfinite)
        outputs = [self.output(inputs) for inputs in batches]
        return Representations(
            common=_rows([output.spaces.get("homo", {}) for output in outputs]),
            private=_rows([output.spaces.get("hetero", {}) for output in outputs]),
            fused=torch.cat([output.representation.float().cpu() for output in outputs]),
        )

    @property
    def scoring(self) -> Scoring:
        """What its answers mean."""
        return self.modules.scoring

    def __repr__(self) -> str:
        card, scoring = self.card, self.modules.scoring
        shapes = ", ".join(f"{modality} {list(card.shape(modality))}" for modality in MODALITIES)
        answers = f": {', '.join(scoring.titles)}" if scoring.kind != "regression" else ""
        parameters = sum(parameter.numel() for parameter in self.modules.parameters())
        encoder = "" if card.text_encoder is None else f", text encoder {self.config.text.encoder}"
        return (
            f"TrainedModel({self.config.model.name}, {scoring.kind}{answers}; {shapes}{encoder}; "
            f"{parameters:,} parameters on {self.device}; "
            f"data {card.data['name']!r}, run {card.source.get('run')!r}, step {card.source.get('step')})"
        )

    @torch.inference_mode()
    def read(self, output: NetworkOutput) -> Prediction:
        """The predictions and edges of an output."""
        modules, scoring = self.modules, self.modules.scoring
        heads = scoring.in_units(modules.all_heads(output).cpu())
        return Prediction(
            heads=dict(zip(modules.network.heads, heads.unbind(1), strict=True)),
            edges={space: edges.cpu() for space, edges in modules.objective.edges(output).items()},
            scoring=scoring,
        )


def _rows(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of consecutive batches as one of each modality, on the CPU."""
    return {m: torch.cat([part[m].float().cpu() for part in parts]) for m in parts[0]}


def fitted_batches(card: ModelCard, given: Mapping[str, Any], nonfinite: Nonfinite) -> Iterator[Inputs]:
    """A user's arrays as batches of a model; what was changed is a warning in the log.

    Raises:
        ValueError: as `TrainedModel.predict`.
    """
    fitter = card.fitter(nonfinite)
    inputs = fitter.fit(given)
    for line in fitter.warnings():
        _log.warning("warning: %s", line)
    for begin in range(0, len(inputs), BATCH_SIZE):
        yield inputs.pick(slice(begin, begin + BATCH_SIZE))


def join(parts: list[Prediction]) -> Prediction:
    """Predictions of consecutive batches as one."""
    first = parts[0]
    return Prediction(
        heads={head: torch.cat([part.heads[head] for part in parts]) for head in first.heads},
        edges={space: torch.cat([part.edges[space] for part in parts]) for space in first.edges},
        scoring=first.scoring,
        spread=_joined([part.spread for part in parts]),
        uncertainty=_joined([part.uncertainty for part in parts]),
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    assert len(there) in (0, len(parts)), "all batches come from one model"
    return torch.cat(there) if there else None


@contextmanager
def _masked_output(encoder: nn.Module | None, mask: Tensor | None) -> Iterator[None]:
    """Multiply what a text encoder gives by a mask, inside the block; nothing without a mask."""
    if encoder is None or mask is None:
        yield
        return

    def multiply(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output * mask.to(output.device, output.dtype)

    handle = encoder.register_forward_hook(multiply)
    try:
        yield
    finally:
        handle.remove()
