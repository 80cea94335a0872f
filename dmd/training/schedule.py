"""Learning rate and stopping, decided after each epoch from the validation loss, equal on every rank."""

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from dmd.config import TrainConfig
from dmd.training.agreement import Diverged


class Schedule:
    """Plateau schedule and early stopping (the published rules): both watch the validation loss."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        self.config = config
        self.plateau = ReduceLROnPlateau(
            optimizer, mode="min", factor=config.plateau_factor, patience=config.plateau_patience
        )
        self.best_loss = float("inf")
        self.best_epoch = -1
        self.best_step = -1

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
        if loss >= self.best_loss:
            return False
        self.best_loss, self.best_epoch, self.best_step = loss, epoch, step
        return True

    def should_stop(self, epoch: int) -> bool:
        """Whether `early_stop` epochs have passed since the best one."""
        return epoch - self.best_epoch >= self.config.early_stop

    def state(self) -> dict[str, Any]:
        """JSON-able state."""
        plateau = {k: v for k, v in self.plateau.state_dict().items() if isinstance(v, int | float | str | list)}
        lr = [group["lr"] for group in self.plateau.optimizer.param_groups]
        return {
            "plateau": plateau, "learning_rates": lr, "best_loss": self.best_loss, "best_epoch": self.best_epoch,
            "best_step": self.best_step,
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.plateau.load_state_dict({**self.plateau.state_dict(), **state["plateau"]})
        for group, rate in zip(self.plateau.optimizer.param_groups, state["learning_rates"], strict=True):
            group["lr"] = rate
        self.best_loss, self.best_epoch = state["best_loss"], state["best_epoch"]
        self.best_step = state["best_step"]
