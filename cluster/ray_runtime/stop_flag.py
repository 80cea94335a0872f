"""A request to stop that reaches the ranks of one training: an actor beside the command that was asked, which rank 0
asks once a second."""

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOOK_SECONDS = 1.0
"""Between two looks of rank 0."""


@ray.remote(num_cpus=0)
class StopFlag:
    """Whether a stop was asked for."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        """Ask for it."""
        self._asked = True

    def asked(self) -> bool:
        """Whether it was."""
        return self._asked


def make_stop_flag() -> Any:
    """A flag on the node of this process."""
    node = ray.get_runtime_context().get_node_id()
    return StopFlag.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()  # type: ignore[attr-defined]


def watching(flag: Any) -> Callable[[], bool]:
    """In a rank: whether the flag is set, as far as it is known; a call never waits."""
    state: dict[str, Any] = {"asked": False, "answer": None, "next": 0.0}

    def asked() -> bool:
        now = time.monotonic()
        if state["answer"] is None and now >= state["next"]:
            state["answer"] = flag.asked.remote()
            state["next"] = now + LOOK_SECONDS
        elif state["answer"] is not None and ray.wait([state["answer"]], timeout=0)[0]:
            try:
                state["asked"] = ray.get(state["answer"])
            except ray.exceptions.RayError:  # the command's node is gone, and with it whoever could ask
                state["next"] = float("inf")
            state["answer"] = None
        return bool(state["asked"])

    return asked
