"""A training's controller that outlives its job ends; left alone, it would hold resources that nobody gives back.

When a driver ends, Ray marks its job as finished, removes the placement groups for which the job's controllers wait,
and then kills the controllers. A controller that sees its group removed takes that for a start that has failed, and
asks for another one at once. Ray has cleaned up after the job by then: it places the group as soon as there is room,
and keeps it for the life of the cluster.
"""

import os

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback


def job_has_ended() -> bool:
    """Whether the driver of this process's job has ended, as Ray's control store knows it."""
    own = ray.get_runtime_context().get_job_id()
    jobs = ray._private.state.jobs()  # type: ignore[no-untyped-call]
    return any(job["JobID"] == own and job["IsDead"] for job in jobs)


class EndWithJob(WorkerGroupCallback):
    """Ends the controller before it asks for resources for a job that has ended."""

    def before_worker_group_start(self, worker_group_context: object) -> None:
        """As Ray Train calls it before each attempt to start ranks."""
        if job_has_ended():
            os._exit(0)
