"""What a training reports: to callbacks after each step and each validation, to its caller at its end."""

from dataclasses import dataclass
from pathlib import Path

from dmd.checkpoint.format import checkpoint_name
from dmd.checkpoint.saver import CHECKPOINTS


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """An optimizer step that was made, the same on every rank."""

    step: int
    """Steps of the run that are done."""
    epoch: int
    """Whole epochs before this step."""
    step_in_epoch: int
    """Steps of this epoch that are done, of `steps_per_epoch`."""
    steps_per_epoch: int
    loss: float
    """The objective on the step's samples."""
    values: dict[str, float]
    """Every loss term, mean edges of the GD-Units and `gradient_norm`, by the names of docs/names.md."""
    learning_rate: float
    """Of all but a text encoder."""
    applied: bool
    """Whether the weights were updated: loss and gradient were finite."""


@dataclass(frozen=True, kw_only=True)
class EpochReport:
    """Where a training stands after a validation, the same on every rank."""

    epoch: int
    """Epochs done; one that `max_steps` cut short counts."""
    step: int
    loss: float
    """Validation loss now."""
    best_loss: float
    """Validation loss of the checkpoint that `dmd evaluate` would take: the lowest of a whole epoch so far, or the
    newest where no epoch is whole."""
    metrics: dict[str, float]
    """Validation metrics of the fused prediction."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended."""

    step: int
    epoch: int
    first_step: int
    """Where this session began: 0, or the step that it continued from."""
    best_step: int
    best_loss: float
    """Step and validation loss of the checkpoint that `dmd evaluate` takes; -1 and NaN where nothing was validated."""
    stopped: bool
    """A stop was asked for: the same command continues, in this run."""
    finished_before: bool
    """The run was finished when the command was given; nothing was done."""

    def text(self, run: Path, seconds: float) -> str:
        """The line that ends a training's output."""
        if self.stopped:
            saved = run / CHECKPOINTS / checkpoint_name(self.step)
            return f"stopped at step {self.step}; the command with --run {run} continues from the checkpoint {saved}"
        reached = f"{self.step} steps ({self.epoch} epochs)"
        best = "" if self.best_step < 0 else f"; best validation loss {self.best_loss:.4f} at step {self.best_step}"
        if self.finished_before:
            return (
                f"{run} is finished: {reached}{best}; nothing was done. To go on, raise train.epochs, train.max_steps "
                "or train.early_stop; for another training give another --run"
            )
        made = f", {self.step - self.first_step} of them now" if self.first_step else ""
        return f"trained {reached}{made} in {seconds:.0f} s{best}; run: {run}"
