"""A training's controller that outlives its job, or its trial, ends; left alone, it would hold resources that nobody
gives back.

When a driver ends, Ray marks its job as finished, removes the placement groups for which the job's controllers wait,
and then kills the controllers. When Ray Tune stops a trial, Ray marks the trial's actors as dead, the controller's
among them, and kills their processes one after the other. A controller that sees its group or a rank go takes that for
a failure, and asks for another group at once. Ray has cleaned up by then: it places the group as soon as there is room,
and keeps it for the life of the cluster.
"""

import os

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback


def has_ended(job: str, actor: str | None) -> bool:
    """Whether the driver of a job has ended, or this actor of it, as Ray's control store knows it."""
    jobs = ray._private.state.jobs()  # type: ignore[no-untyped-call]
    if any(known["JobID"] == job and known["IsDead"] for known in jobs):
        return True
    return actor is not None and ray._private.state.actors(actor)["State"] == "DEAD"


class EndWithOwner(WorkerGroupCallback):
    """Ends the controller before it asks for resources for a job or a trial that has ended."""

    def before_worker_group_start(self, worker_group_context: object) -> None:
        """As Ray Train calls it before each attempt to start ranks."""
        context = ray.get_runtime_context()
        if has_ended(context.get_job_id(), context.get_actor_id()):
            os._exit(0)
