"""The trackers, one row each. Their names are those of the libraries that they need."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from dmd.extras import require
from dmd.training.logging.trackers.mlflow_runs import MLflowRun
from dmd.training.logging.trackers.tracker import Tracker
from dmd.training.logging.trackers.weights_and_biases import WeightsAndBiasesRun

if TYPE_CHECKING:
    from dmd.config import Config
    from dmd.config.schema import TrackerName

TRACKERS: "dict[TrackerName, Callable[[], Tracker]]" = {
    "wandb": WeightsAndBiasesRun,
    "mlflow": MLflowRun,
}


def check_trackers(config: "Config") -> None:
    """Raise ValueError for a tracker whose library is not installed."""
    for name in config.train.trackers:
        require(name)
