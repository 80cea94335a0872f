"""What a training tells its caller: after each validation (`Training(on_epoch=...)`), and at its end."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """Where a training stands after a validation, the same on every rank."""

    epoch: int
    """Epochs done; one that `max_steps` cut short counts."""
    step: int
    loss: float
    """Validation loss now."""
    best_loss: float
    """Lowest validation loss of a whole epoch so far."""
    metrics: dict[str, float]
    """Validation metrics of the fused prediction."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended."""

    step: int
    epoch: int
    best_step: int
    best_loss: float
    stopped: bool
    """A stop was asked for: the same command continues."""
