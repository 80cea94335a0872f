"""Forward and backward of a training pass as one CUDA graph: the host launches twice instead of some hundred times.

The first pass runs kernel by kernel and shows which dropout keys it needs; the second is captured; later ones copy
their batch to the captured addresses and replay. Dropout keys lie in the device's memory, and torch's own generator,
which the text encoder draws from, is seeded before each pass, so a replay draws what the pass would have drawn. A batch
of another shape runs kernel by kernel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dmd.config import Config
from dmd.config.schema import TextConfig
from dmd.data.loader import PINNING, Batch
from dmd.kernels.common.block_sizes import MAX_WIDTH
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.interface import Backend
from dmd.system.joined_weights import JoinedWeights
from dmd.system.models import MODELS
from dmd.system.pass_terms import PassTerms, pass_terms

Terms = Callable[[Batch, DropoutRNG], dict[str, Tensor]]
"""Loss terms {name: [G]} of a batch, of which `total` is the objective."""
_UNTRIED = ("consistency", "label_density_smoothing")
"""Keys of `objective` with which no capture has run on a GPU, where they are not 0."""
WARMUPS = 3
"""Passes, forward and backward, that are run before the capture (torch's own default)."""


def obstacle_to_capture(config: Config, device: torch.device, backend: Backend, *, encodes_text: bool) -> str:
    """Why a training's passes cannot be captured; empty where they can.

    Args:
        encodes_text: the pass has a text encoder.
    """
    train = config.train
    if train.cuda_graph == "off":
        return "train.cuda_graph is off"
    if device.type != "cuda":
        return f"there are no CUDA graphs on {device.type} devices"
    if backend.name == "plain":
        return "plain kernels take dropout keys from the host (train.kernels)"
    if not MODELS[config.model.name].is_captured:
        return f"model.name is {config.model.name!r}, of which no pass has been captured"
    if untried := [key for key in _UNTRIED if getattr(config.objective, key)]:
        return f"objective.{untried[0]} is above 0, of which no capture has run on a GPU"
    if 2 * config.model.dim > MAX_WIDTH:
        return f"encoders of {2 * config.model.dim} channels, 2 model.dim, run in part in plain torch; {MAX_WIDTH} fit"
    if train.zero_stage == 3:
        return "train.zero_stage is 3, where a pass gathers weights"
    if encodes_text and (obstacle := _obstacle_of_text(config.text)):
        return obstacle
    at_once = train.ghost_batches_per_forward
    if at_once != "auto" and train.ghost_batches_per_step > at_once:
        # A replay overwrites the gradients of the one before, which autograd may have kept without a copy.
        return "a step is more than one pass (train.ghost_batches_per_forward)"
    return ""


def _obstacle_of_text(text: TextConfig) -> str:
    """Why a pass with this text encoder cannot be captured; empty where it can."""
    if text.compile:
        return "text.compile is on"
    if text.gradient_checkpointing:
        return "text.gradient_checkpointing is on, which sets torch's generator back in backward"
    if text.quantize == "8bit":
        return "text.quantize is '8bit', where each layer asks the device which inputs are outliers"
    if text.quantize == "4bit":
        return "text.quantize is '4bit', of which no capture has run on a GPU"
    return ""


class TensorPass(nn.Module):
    """A pass over tensors alone, with few of them: each costs the host a copy, a gradient, or both, at every replay.

    Args:
        compute: the pass, kernel by kernel.
        module: whose weights it reads.
    """

    def __init__(self, compute: Terms, module: nn.Module) -> None:
        super().__init__()
        self._compute = compute
        self.module = module
        self.rng: DropoutRNG | None = None
        self.like: Batch | None = None
        self.names: tuple[str, ...] = ()
        """Of the rows."""

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """text, audio, vision, labels, mask -> total and rows of `PassTerms`."""
        assert self.rng is not None
        assert self.like is not None
        self.rng.restart()
        text, audio, vision, labels, mask = inputs
        batch = Batch(
            text=text,
            audio=audio,
            vision=vision,
            labels=labels,
            mask=mask,
            rows=self.like.rows,
            ghosts=self.like.ghosts,
        )
        self.names, total, rows = pass_terms(self._compute(batch, self.rng))
        return total, rows

    def of_weights(self, weights: Sequence[JoinedWeights]) -> Callable[..., tuple[Tensor, Tensor]]:
        """The pass as a function of its inputs and then of the joined weights that are trained."""
        names = {id(weight): name for name, weight in self.named_parameters()}

        def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            inputs, wholes = tensors[: -len(weights)], tensors[-len(weights) :]
            parts: dict[str, Tensor] = {}
            for each, whole in zip(weights, wholes, strict=True):
                own = [names[id(weight)] for weight in each.parameters.values()]
                parts |= zip(own, each.differentiable_parts(whole), strict=True)
            total_and_rows: tuple[Tensor, Tensor] = torch.func.functional_call(self, parts, inputs)
            return total_and_rows

        return run


class CapturedPass:
    """Runs passes, captured from the second one on.

    Args:
        compute: a pass, kernel by kernel.
        module: whose weights it reads.
        weights: gives those that are trained, when the pass is captured.
    """

    def __init__(self, compute: Terms, module: nn.Module, weights: Callable[[], Sequence[JoinedWeights]]) -> None:
        self._compute = compute
        self._module = module
        self._weights = weights
        self._pass: TensorPass | None = None
        self._replay: Callable[..., tuple[Tensor, Tensor]] | None = None
        self._wholes: list[nn.Parameter] = []
        self._shapes: list[torch.Size] = []

    def __call__(self, batch: Batch, rng: DropoutRNG) -> PassTerms:
        """Terms of a batch, which the next pass overwrites."""
        inputs = (batch.text, batch.audio, batch.vision, batch.labels, batch.mask)
        shapes = [x.shape for x in inputs]
        assert rng.keys is not None
        if not rng.keys.known or (self._replay is not None and shapes != self._shapes):
            return pass_terms(self._compute(batch, rng))
        if self._replay is None:
            self._capture(batch, rng, inputs)
        assert self._pass is not None
        assert self._replay is not None
        total, rows = self._replay(*inputs, *self._wholes)
        return PassTerms(self._pass.names, total, rows.detach())

    def _capture(self, batch: Batch, rng: DropoutRNG, inputs: tuple[Tensor, ...]) -> None:
        """Capture the pass; the seed of torch's generator is then as it was before.

        Autograd accumulates a weight's gradient on the stream on which it first saw the weight, as long as any loss of
        an earlier pass is alive, and a capture must not wait for that stream. So what is captured are aliases of the
        weights: tensors of the same memory that autograd has not seen.
        """
        self._pass = TensorPass(self._compute, self._module)
        self._pass.rng, self._pass.like = rng, batch
        self._shapes = [x.shape for x in inputs]
        weights = self._weights()
        self._wholes = [each.whole for each in weights]
        samples = tuple(x.clone() for x in inputs)
        aliases = tuple(nn.Parameter(whole.detach()) for whole in self._wholes)
        self._replay = self._graphed(self._pass.of_weights(weights), samples + aliases)

    def _graphed(
        self, run: Callable[..., tuple[Tensor, Tensor]], samples: tuple[Tensor, ...]
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """`run` as a graph that was captured with these tensors."""
        device = samples[0].device
        state = torch.cuda.get_rng_state(device)
        with PINNING:  # threads read ahead
            graphed: Any = torch.cuda.make_graphed_callables(
                run, samples, num_warmup_iters=WARMUPS, allow_unused_input=True
            )
        torch.cuda.set_rng_state(state, device)
        return graphed
