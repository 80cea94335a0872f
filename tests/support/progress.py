"""The progress of a training that does not run."""

import torch

from dmd.checkpoint.state import Cursor
from dmd.config import TrainConfig
from dmd.data.plan import EpochPlan
from dmd.metrics import Scoring
from dmd.system.models import terms_of
from dmd.training.logging.progress import TrainingProgress
from dmd.training.outcome import EpochReport
from dmd.training.schedule import Schedule


def made_progress(**settings: object) -> TrainingProgress:
    """The progress of a training of 40 epochs with 8 steps each."""
    config = TrainConfig(**{"epochs": 40, "learning_rate": 1e-3, **settings})  # type: ignore[arg-type]
    plan = EpochPlan(
        num_samples=1280,
        ghost_batch_size=16,
        ghost_batches_per_step=10,
        ghost_batches_per_forward=10,
        num_ranks=1,
    )
    schedule = Schedule(torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1e-3), config)
    return TrainingProgress(
        config,
        plan,
        schedule,
        Scoring(),
        terms=terms_of("dmd"),
        step=0,
        cursor=Cursor(),
        to_validate=4,
        ranks="1 rank (cpu)",
        shown=True,
    )


def report_of(epoch: int, metrics: dict[str, float], loss: float = 0.9) -> EpochReport:
    """What a validation after so many epochs gave."""
    return EpochReport(epoch=epoch, step=8 * epoch, loss=loss, best_loss=loss, metrics=metrics)
