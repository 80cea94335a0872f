"""Weight averaging: an exponential moving average of everything that is trained, network and objective.

The averaged weights are what is validated, logged, kept as best and given to `dmd evaluate`, `predict`, `export` and
`report`: a checkpoint's `model.safetensors` holds them. The training goes on from its own weights, which lie beside the
optimizer's state under `weights/`. Every rank averages the whole weights, which are the same on every rank after a
step at each ZeRO stage, so nothing here depends on ranks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dmd.checkpoint.format import Snapshot
from dmd.distributed.engine import Engine

PREFIX = "weights/"
"""Of the training's own weights among the optimizer tensors of a checkpoint."""
START, DELAY = 1.0, 10.0
"""After t updates the decay is at most (START + t) / (DELAY + t): an average soon forgets the weights as drawn."""


class WeightAverage:
    """The average of a system's trained parameters; the system itself keeps the training's own weights.

    Args:
        system: what is trained, on its device.
        decay: share of the average that stays in a step, below 1; 0 keeps no average and costs nothing.
    """

    def __init__(self, system: nn.Module, decay: float) -> None:
        self._decay = decay
        self._trained = {name: p for name, p in system.named_parameters() if p.requires_grad} if decay > 0 else {}
        self._average = [weight.clone() for weight in self._weights()]
        self.updates: int | None = 0 if decay > 0 else None
        """Steps that were averaged; None where nothing is."""

    def update(self) -> None:
        """Take the weights after a step into the average."""
        if self.updates is not None:
            decay = min(self._decay, (START + self.updates) / (DELAY + self.updates))
            torch._foreach_lerp_(self._average, self._weights(), 1 - decay)
            self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The system has the averaged weights inside the block, and its own, bitwise identical, behind it."""
        if self.updates is None:
            yield
            return
        own = [weight.clone() for weight in self._weights()]
        torch._foreach_copy_(self._weights(), self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights(), own)

    def own_weights(self) -> dict[str, Tensor]:
        """Copies on the CPU of the weights that training continues from, `weights/PARAMETER`; {} without an average."""
        return {PREFIX + name: p.detach().to("cpu", copy=True) for name, p in self._trained.items()}

    def restore(self, engine: Engine, snapshot: Snapshot) -> None:
        """Continue from a checkpoint: the engine's weights and optimizer, and the average."""
        own = {k.removeprefix(PREFIX): tensor for k, tensor in snapshot.optimizer.items() if k.startswith(PREFIX)}
        engine.load_weights(snapshot.model | own)
        engine.load_optimizer_state({k: t for k, t in snapshot.optimizer.items() if not k.startswith(PREFIX)})
        if self.updates is not None:
            self.updates = int(snapshot.state["averaged_steps"])
            for name, average in zip(self._trained, self._average, strict=True):
                average.copy_(snapshot.model[name])

    def _weights(self) -> list[Tensor]:
        """The parameters' data now: an engine may move it."""
        return [parameter.data for parameter in self._trained.values()]
