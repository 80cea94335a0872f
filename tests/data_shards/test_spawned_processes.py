"""Processes that may die: what a killed one costs, and how tasks end."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_shards.executor import Ending
from data_shards.spawned_processes import SpawnedProcesses

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]


@dataclass(frozen=True)
class Tasks:
    """Tasks of which some end badly: 1 once, 2 always, 3 with storage that fails, 4 by a bug, 5 by its time limit."""

    folder: Path

    def __call__(self, number: int) -> int:
        first = self.folder / f"attempt of {number}"
        if number == 1 and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 3:
            raise OSError("the disk is gone")
        if number == 4:
            raise RuntimeError("a bug")
        if number == 5:
            signal.alarm(1)
            signal.pause()
        return number * number


def mistaken(number: int) -> int:
    raise ValueError("the user's mistake")


class CannotStart:
    """What a process cannot load."""

    def __call__(self, number: int) -> int:
        return number

    def __setstate__(self, state: object) -> None:
        raise RuntimeError("this library is not here")

    def __getstate__(self) -> dict[str, int]:
        return {"x": 1}


def test_a_lost_process_costs_its_task_an_attempt(tmp_path):
    with SpawnedProcesses(processes=2, attempts=2).map_independent(Tasks(tmp_path), 8, memory=0) as endings:
        found = sorted(endings, key=lambda ending: ending.number)
    assert found == [
        Ending(number=0, result=0),
        Ending(number=1, result=1),
        Ending(number=2, lost="its process was killed, as the kernel does where memory is short (attempts: 2)"),
        Ending(number=3, lost="the disk is gone (attempts: 2)"),
        Ending(number=4, lost="RuntimeError: a bug"),
        Ending(number=5, lost="it took longer than a task may (attempts: 2)"),
        Ending(number=6, result=36),
        Ending(number=7, result=49),
    ]


@pytest.mark.parametrize(
    ("run", "message"),
    [(mistaken, "the user's mistake"), (CannotStart(), r"a process cannot start \(exit code 1\)")],
)
def test_what_ends_everything(run, message):
    with (
        pytest.raises(ValueError, match=message),
        SpawnedProcesses(processes=1, attempts=2).map_independent(run, 3, memory=0) as endings,
    ):
        list(endings)
