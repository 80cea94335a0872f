"""How a rank on Ray ends, and which endings Ray Train starts the ranks again after.

A rank raises a `RankEnded` for every error, with the ending that the launcher would report of it. Ray Train's
controller sees the errors of all ranks together. A rank that died says nothing, and counts as lost.
"""

import os

from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from dmd.exit_codes import FAILED, LOST, restart_mends
from dmd.training.logging.provenance import RESTART
from launch.supervision.ending import CONTINUES, Ending, cause, reason


class RankEnded(Exception):
    """A rank ended over an error, with this ending."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending

    def __str__(self) -> str:
        return self.ending.message


def ending_of_failure(error: Exception) -> Ending:
    """The ending that stands for all ranks of a training that Ray Train has given up, or starts again.

    Args:
        error: a `ray.train.TrainingFailedError`.
    """
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    if not failures:
        return Ending(code=FAILED, message=f"Ray Train failed: {_first_line(error)}")
    return cause({rank: _ending_of_rank(rank, failure) for rank, failure in failures.items()})


def _ending_of_rank(rank: int, error: Exception) -> Ending:
    if isinstance(error, RankEnded):
        return error.ending
    died = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
    return Ending(
        code=LOST, message=f"rank {rank} died or cannot be reached ({_first_line(died)}){CONTINUES}", origin=rank
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


class RestartPolicy(DefaultFailurePolicy):
    """Starts the ranks again, so often as Ray Train may, after what a restart mends; ends the training otherwise."""

    _restarts = 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """As Ray Train calls it, on the controller, for every failure."""
        if not isinstance(training_failed_error, WorkerGroupError):
            return super().make_decision(training_failed_error)
        ending = ending_of_failure(training_failed_error)
        if not restart_mends(ending.code):
            return FailureDecision.RAISE
        decision = super().make_decision(training_failed_error)
        if decision is FailureDecision.RETRY:
            self._restarts += 1
            why = f"{self._restarts} of {self.failure_config.max_failures}: {reason(ending)}"
            os.environ[RESTART] = why  # which `process_group` gives to the ranks
            print(f"dmd train: restart {why}", flush=True)
        return decision
