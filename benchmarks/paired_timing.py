"""Paired timing: several things run in alternation in one process, so that a busy machine slows all of them."""

import time
from collections.abc import Callable


def seconds(step: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def alternate(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds of every step in every round but the first."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            found = seconds(step)
            if number:
                times[name].append(found)
    return times
