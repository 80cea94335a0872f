"""What the training loop asks of an engine. `launch.trainer.engine` makes one with DeepSpeed."""

from typing import Protocol

import torch
from torch import Tensor

from dmd.system.pass_terms import PassTerms
from dmd.system.system import TrainingSystem


class Engine(Protocol):
    """A system whose gradients are averaged over the ranks."""

    system: TrainingSystem
    """The bare modules, for evaluation and checkpoints."""
    optimizer: torch.optim.Optimizer
    """The optimizer whose learning rates a schedule sets."""
    device: torch.device
    rank: int
    num_ranks: int

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

    def load_weights(self, state: dict[str, Tensor]) -> None:
        """Take over the system's weights."""
        ...
