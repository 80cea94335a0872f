"""What the training loop asks of an engine. `launch.trainer.engine` makes one with DeepSpeed."""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dmd.system.pass_terms import PassTerms
from dmd.system.system import TrainingSystem


@dataclass(frozen=True, kw_only=True)
class SystemSizes:
    """What a system weighs, before ranks divide it."""

    parameters: int
    """Elements of all parameters; weights in 4 bits count each."""
    trained_bytes: int
    """Bytes of those that are trained."""
    state_bytes: int
    """Bytes of what a checkpoint holds of weights and buffers."""


def sizes_of(system: TrainingSystem) -> SystemSizes:
    """What a system weighs that is whole."""
    return SystemSizes(
        parameters=sum(_elements(p) for p in system.parameters()),
        trained_bytes=sum(p.numel() * p.element_size() for p in system.parameters() if p.requires_grad),
        state_bytes=sum(tensor.numel() * tensor.element_size() for tensor in system.state_dict().values()),
    )


def _elements(parameter: Tensor) -> int:
    """Elements of a weight, also where bitsandbytes has packed them."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else math.prod(packed.shape)


class Engine(Protocol):
    """A system whose gradients are averaged over the ranks."""

    system: TrainingSystem
    """The bare modules, for evaluation and checkpoints."""
    optimizer: torch.optim.Optimizer
    """The optimizer whose learning rates a schedule sets."""
    device: torch.device
    rank: int
    num_ranks: int
    sizes: SystemSizes

    def forward(self, *arguments: object) -> PassTerms:
        """Run the system's forward pass for training, in the precision of the config."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss; the last one of a step reduces them over the ranks while it runs."""
        ...

    def step(self, numbers: Tensor) -> tuple[list[float], bool]:
        """Clip, update the weights, clear the gradients; nothing is applied unless loss and gradient are finite.

        Args:
            numbers: what is to be known of the step on the host, the same on all ranks, so that all of them decide the
                same; the loss is the first.

        Returns:
            the numbers and, last, the norm of the reduced gradient before the clip; and whether the step was applied.
        """
        ...

    def optimizer_state(self) -> dict[str, Tensor]:
        """Copies on the CPU of the whole optimizer state, `KEY/PARAMETER`. Every rank must call it."""
        ...

    def load_optimizer_state(self, state: dict[str, Tensor]) -> None:
        """Take over a state from `optimizer_state`, at any number of ranks."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Copies on the CPU of the system's weights and buffers, on the first rank; the others get none. Every rank
        must call it."""
        ...

    def whole_weights(self) -> AbstractContextManager[None]:
        """The system may be run on any rank alone inside the block: its weights are whole. Every rank must enter it."""
        ...

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take over the system's weights. Every rank must call it."""
        ...
