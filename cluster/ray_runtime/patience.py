"""No wait without an end: a search or an experiment ends where none of its trainings has room for long."""

import time

import ray

from cluster.ray_runtime.session import num_ranks

LOOK_SECONDS = 2.0
"""Between two looks."""


class Unavailable(Exception):
    """The cluster does not give what a command waits for; the same command continues. Exit code 69."""


def what_is_free() -> str:
    """CPUs and GPUs of the cluster that nobody holds, for messages."""
    free, there = ray.available_resources(), ray.cluster_resources()  # type: ignore[no-untyped-call]
    return ", ".join(f"{free.get(name, 0):g} of {there.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


class Patience:
    """How long nothing of a command has had room on its cluster: no rank of a trial, no evaluation."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._looked = self._busy = time.monotonic()

    def look(self) -> None:
        """Look at the cluster, at most every other second.

        Raises:
            Unavailable: nothing has had room for too long.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if num_ranks() > 0:
            self._busy = now
        elif now - self._busy > self._seconds:
            raise Unavailable(
                f"no training has had room for {now - self._busy:.0f} s (free: {what_is_free()}): others hold the "
                "cluster, or Ray has not taken back what stopped trials held, as a head without a dashboard cannot; "
                "--patience waits longer"
            )
