"""Learning rate and stopping, decided after each epoch from the validation loss, equal on every rank."""

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dmd.config import TrainConfig
from dmd.distributed.errors import Diverged


class Schedule:
    """Early stopping by the validation loss, and learning rates by the plateau rule (published) or a half cosine.

    Args:
        optimizer: its first group is the network, further ones are the text encoder's.
        config: `schedule`, `epochs`, the plateau's values and `early_stop`.
        text_warmup: epochs over which the text encoder's rates rise to their own.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, *, text_warmup: int = 0) -> None:
        self.config = config
        self.text_warmup = text_warmup
        self.base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.plateau = ReduceLROnPlateau(
            optimizer, mode="min", factor=config.plateau_factor, patience=config.plateau_patience
        )
        self.best_loss = float("inf")
        self.best_epoch = -1
        self.best_step = -1
        self._set_rates(0)

    def update(self, loss: float, *, epoch: int, step: int) -> bool:
        """Take the validation loss after an epoch; returns whether it is the best one.

        Raises:
            Diverged: the loss is not a number: the training has diverged.
        """
        if loss != loss:
            raise Diverged(
                f"the validation loss after step {step} is not a number: the training has diverged; lower "
                "train.learning_rate and start again in a new run directory"
            )
        self.plateau.step(loss)
        self._set_rates(epoch + 1)
        if loss >= self.best_loss:
            return False
        self.best_loss = loss
        self.best_epoch = epoch
        self.best_step = step
        return True

    def _set_rates(self, epoch: int) -> None:
        """The rates of an epoch, counted from 0; where neither option is on they are the plateau's own."""
        network, *text = self.plateau.optimizer.param_groups
        if self.config.schedule == "cosine":
            part = 0.5 * (1 + math.cos(math.pi * min(epoch, self.config.epochs) / self.config.epochs))
            for group, rate in zip(self.plateau.optimizer.param_groups, self.base_rates, strict=True):
                group["lr"] = rate * part
        if text and self.text_warmup:
            warm = min(1.0, (epoch + 1) / (self.text_warmup + 1))
            for group, rate in zip(text, self.base_rates[1:], strict=True):
                group["lr"] = rate * warm * network["lr"] / self.base_rates[0]

    def should_stop(self, epoch: int) -> bool:
        """Whether `early_stop` epochs have passed since the best one."""
        return epoch - self.best_epoch >= self.config.early_stop

    def state(self) -> dict[str, Any]:
        """JSON-able state."""
        plateau = {k: v for k, v in self.plateau.state_dict().items() if isinstance(v, int | float | str | list)}
        lr = [group["lr"] for group in self.plateau.optimizer.param_groups]
        return {
            "plateau": plateau,
            "learning_rates": lr,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "best_step": self.best_step,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.plateau.load_state_dict({**self.plateau.state_dict(), **state["plateau"]})
        for group, rate in zip(self.plateau.optimizer.param_groups, state["learning_rates"], strict=True):
            group["lr"] = rate
        self.best_loss = state["best_loss"]
        self.best_epoch = state["best_epoch"]
        self.best_step = state["best_step"]
