"""Forward and backward of a training pass as one CUDA graph: the host launches twice instead of some hundred times.

The first pass runs kernel by kernel and shows which dropout keys it needs; the second is captured; later ones copy
their batch to the captured addresses and replay. Dropout keys lie in the device's memory, and torch's own generator,
which the text encoder draws from, is seeded before each pass, so a replay draws what the pass would have drawn. A batch
of another shape runs kernel by kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dmd.config import Config
from dmd.data.loader import PINNING, Batch
from dmd.kernels.common.block_sizes import MAX_WIDTH
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.interface import Backend

Terms = Callable[[Batch, DropoutRNG], dict[str, Tensor]]
"""Loss terms {name: [G]} of a batch, of which `total` is the objective."""
WARMUPS = 3
"""Passes, forward and backward, that are run before the capture (torch's own default)."""


def obstacle_to_capture(config: Config, device: torch.device, backend: Backend) -> str:
    """Why a training's passes cannot be captured; empty where they can."""
    train = config.train
    if train.cuda_graph == "off":
        return "train.cuda_graph is off"
    if device.type != "cuda":
        return f"there are no CUDA graphs on {device.type} devices"
    if backend.name == "plain":
        return "plain kernels take dropout keys from the host (train.kernels)"
    if 2 * config.model.dim > MAX_WIDTH:
        return f"encoders of {2 * config.model.dim} channels, 2 model.dim, run in part in plain torch; {MAX_WIDTH} fit"
    if train.zero_stage == 3:
        return "train.zero_stage is 3, where a pass gathers weights"
    if config.text.compile:
        return "text.compile is on"
    if config.text.gradient_checkpointing:
        return "text.gradient_checkpointing is on, which sets torch's generator back in backward"
    at_once = train.ghost_batches_per_forward
    if at_once != "auto" and train.ghost_batches_per_step > at_once:
        # A replay overwrites the gradients of the one before, which autograd may have kept without a copy.
        return "a step is more than one pass (train.ghost_batches_per_forward)"
    return ""


class TensorPass(nn.Module):
    """A pass over tensors alone, with every term in one tensor, of which the total alone has a gradient: each output
    of a captured pass costs a gradient of zeros and a copy.

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
        self.shapes: dict[str, torch.Size] = {}
        """[G] of each term, or [G, 6] of mean edges."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """text, audio, vision, labels, mask -> all terms one after the other, each as it lies in memory."""
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
        terms = self._compute(batch, self.rng)
        self.shapes = {name: term.shape for name, term in terms.items()}
        return torch.cat([(term if name == "total" else term.detach()).flatten() for name, term in terms.items()])

    def terms(self, joined: Tensor) -> dict[str, Tensor]:
        """The terms of what `forward` gave."""
        parts = joined.split([shape.numel() for shape in self.shapes.values()])
        terms = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return {name: term if name == "total" else term.detach() for name, term in terms.items()}

    def of_weights(self) -> tuple[Callable[..., Tensor], tuple[nn.Parameter, ...]]:
        """The pass as a function of its inputs and then of the weights that are trained, and those weights."""
        named = {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

        def run(*tensors: Tensor) -> Tensor:
            inputs, weights = tensors[: -len(named)], tensors[-len(named) :]
            joined: Tensor = torch.func.functional_call(self, dict(zip(named, weights, strict=True)), inputs)
            return joined

        return run, tuple(named.values())


class CapturedPass:
    """Runs passes, captured from the second one on.

    Args:
        compute: a pass, kernel by kernel.
        module: whose weights it reads.
    """

    def __init__(self, compute: Terms, module: nn.Module) -> None:
        self._compute = compute
        self._module = module
        self._pass: TensorPass | None = None
        self._replay: Callable[..., Any] | None = None
        self._weights: tuple[nn.Parameter, ...] = ()
        self._shapes: list[torch.Size] = []

    def __call__(self, batch: Batch, rng: DropoutRNG) -> dict[str, Tensor]:
        """Terms {name: [G]} of a batch; only `total` has a gradient."""
        inputs = (batch.text, batch.audio, batch.vision, batch.labels, batch.mask)
        shapes = [x.shape for x in inputs]
        assert rng.keys is not None
        if not rng.keys.known or (self._replay is not None and shapes != self._shapes):
            return self._compute(batch, rng)
        if self._replay is None:
            self._capture(batch, rng, inputs)
        assert self._pass is not None
        assert self._replay is not None
        joined = self._replay(*inputs, *self._weights)
        return self._pass.terms(joined.clone())  # the next replay writes to the same place

    def _capture(self, batch: Batch, rng: DropoutRNG, inputs: tuple[Tensor, ...]) -> None:
        """Capture the pass; the seed of torch's generator is then as it was before.

        Autograd accumulates a weight's gradient on the stream on which it first saw the weight, as long as any loss of
        an earlier pass is alive, and a capture must not wait for that stream. So what is captured are aliases of the
        weights: tensors of the same memory that autograd has not seen.
        """
        self._pass = TensorPass(self._compute, self._module)
        self._pass.rng, self._pass.like = rng, batch
        self._shapes = [x.shape for x in inputs]
        run, self._weights = self._pass.of_weights()
        samples = tuple(x.clone() for x in inputs)
        aliases = tuple(nn.Parameter(weight.detach()) for weight in self._weights)
        self._replay = self._graphed(run, samples + aliases)

    def _graphed(self, run: Callable[..., Tensor], samples: tuple[Tensor, ...]) -> Callable[..., Any]:
        """`run` as a graph that was captured with these tensors."""
        device = samples[0].device
        state = torch.cuda.get_rng_state(device)
        with PINNING:  # threads read ahead
            graphed: Callable[..., Any] = torch.cuda.make_graphed_callables(
                run, samples, num_warmup_iters=WARMUPS, allow_unused_input=True
            )
        torch.cuda.set_rng_state(state, device)
        return graphed
