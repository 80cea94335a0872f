"""How a rank on Ray ends, and which endings Ray Train starts the ranks again after.

A rank raises a `RankEnded` for every error, with the ending that the launcher would report of it. Ray Train's
controller sees the errors of all ranks together. A rank that died says nothing, and counts as lost. What fails before
the ranks train fails on the controller.
"""

import os

from ray.exceptions import RayActorError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError, WorkerGroupError

from data_shards.durable import Unreadable
from data_shards.places import redact
from dmd.errors import first_line
from dmd.exit_codes import FAILED, LOST, STORAGE, USER_ERROR, restart_mends
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
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return cause({rank: _ending_of_rank(rank, failure) for rank, failure in error.worker_failures.items()})
    return _ending_of_start(error.controller_failure if isinstance(error, ControllerError) else error)


def _ending_of_start(error: Exception) -> Ending:
    """The ending over an error before the ranks train, with the codes of the launcher."""
    if isinstance(error, RayTaskError):
        error = error.cause  # what a rank raised in `process_group`; the text of the other is a traceback
    if isinstance(error, (WorkerGroupStartupFailedError, RayActorError)):
        why = first_line(error.__cause__ or error)  # the cause does not travel from the controller to the command
        return Ending(code=LOST, message=f"a rank died while the ranks started ({why}){CONTINUES}")
    if isinstance(error, Unreadable):
        return Ending(
            code=STORAGE, message=f"{redact(str(error))}; the same command continues when the storage works again"
        )
    if isinstance(error, ValueError):
        return Ending(code=USER_ERROR, message=redact(str(error)))
    return Ending(code=FAILED, message=f"Ray Train failed: {first_line(error)}")


def _ending_of_rank(rank: int, error: Exception) -> Ending:
    if isinstance(error, RankEnded):
        return error.ending
    died = error.health_check_failure if isinstance(error, WorkerHealthCheckFailedError) else error
    return Ending(
        code=LOST, message=f"rank {rank} died or cannot be reached ({first_line(died)}){CONTINUES}", origin=rank
    )


class RestartPolicy(DefaultFailurePolicy):
    """Starts the ranks again, `max_failures` times, after what a restart mends; ends the training otherwise.

    Ray Train's own policy counts in three ways, two of them without an end: ranks that die while they start, and those
    of a node that is drained. It decides here over ranks that wait for room.
    """

    _restarts = 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """As Ray Train calls it, on the controller, for every failure."""
        ending = ending_of_failure(training_failed_error)
        if not restart_mends(ending.code):
            ranks_failed = isinstance(training_failed_error, WorkerGroupError)
            return FailureDecision.RAISE if ranks_failed else super().make_decision(training_failed_error)
        if self._restarts >= self.failure_config.max_failures:
            return FailureDecision.RAISE
        self._restarts += 1
        why = f"{self._restarts} of {self.failure_config.max_failures}: {reason(ending)}"
        os.environ[RESTART] = why  # which `process_group` gives to the ranks
        print(f"dmd train: restart {why}", flush=True)
        return FailureDecision.RETRY
