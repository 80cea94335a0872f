"""kill -9 at every stage of a save, in a process of its own: what is visible afterwards is whole."""

import inspect
import os
import re
import signal
from pathlib import Path

import pytest
import torch

from dmd.checkpoint import writer as checkpoint_writer
from dmd.checkpoint.format import list_checkpoints, newest_whole, read_checkpoint
from dmd.checkpoint.writer import AsyncWriter, write_checkpoint
from dmd.testing.fault_points import fault_point
from tests.support.ranks import forks
from tests.support.snapshots import equal, hidden, snapshot, steps

pytestmark = pytest.mark.slow

POINTS = re.findall(r'fault_point\("(.+?)"\)', inspect.getsource(checkpoint_writer))
AFTER_RENAME = {"checkpoint.renamed", "checkpoint.committed", "checkpoint.removing"}


def save(root: Path, step: int, best: int, fault: str, rank: int = 0) -> int | None:
    """Save in a child with a fault; its exit status."""
    environment = {"DMD_FAULT": fault, "RANK": str(rank)}
    child = forks.Process(target=_save, args=(root, step, best, environment))
    child.start()
    child.join(120)
    return child.exitcode


def _save(root: Path, step: int, best: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    writer = AsyncWriter(root, keep=2)
    writer.submit(snapshot(step, best=best, salt=1))
    writer.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for step in (10, 20, 30):
        write_checkpoint(tmp_path / "checkpoints", snapshot(step), keep=2)
    assert steps(tmp_path / "checkpoints") == [20, 30]
    return tmp_path / "checkpoints"


def test_the_fault_points_cover_every_stage():
    stages = "staged model optimizer state manifest replacing renamed committed removing"
    assert set(POINTS) == {f"checkpoint.{stage}" for stage in stages.split()}


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_saving_the_next_step(root, point):
    assert save(root, 40, 40, f"{point}@1") == -signal.SIGKILL
    whole = snapshot(40, best=40, salt=1) if point in AFTER_RENAME else snapshot(30)
    path, skipped = newest_whole(root)
    assert not skipped
    assert equal(read_checkpoint(path), whole)
    assert all(info.reason is None for info in list_checkpoints(root))
    assert len(steps(root)) >= 2
    write_checkpoint(root, snapshot(50), keep=2)
    assert not hidden(root)
    assert len(steps(root)) == 2


@pytest.mark.parametrize("point", ["checkpoint.manifest", "checkpoint.replacing", "checkpoint.renamed"])
def test_killed_while_saving_a_step_again_that_is_the_only_one(tmp_path, point):
    root = tmp_path / "checkpoints"
    write_checkpoint(root, snapshot(30), keep=2)
    assert save(root, 30, 30, f"{point}@1") == -signal.SIGKILL
    whole = snapshot(30, best=30, salt=1) if point in AFTER_RENAME else snapshot(30)
    assert equal(read_checkpoint(newest_whole(root)[0]), whole)
    write_checkpoint(root, snapshot(40), keep=2)
    assert not hidden(root)
    assert steps(root) == [30, 40]
    assert equal(read_checkpoint(root / "step_00000030"), whole)


@pytest.mark.parametrize("point", ["checkpoint.replacing", "checkpoint.renamed"])
def test_killed_while_going_back_never_returns_to_the_later_steps(root, point):
    assert save(root, 25, 20, f"{point}@1") == -signal.SIGKILL
    expected = snapshot(25, best=20, salt=1) if point in AFTER_RENAME else snapshot(20)
    assert equal(read_checkpoint(newest_whole(root)[0]), expected)


def test_the_fault_counts_and_asks_for_the_rank(root):
    assert save(root, 40, 40, "checkpoint.model@1@1", rank=0) == 0
    assert save(root, 50, 40, "checkpoint.model@2", rank=1) == 0
    assert save(root, 60, 40, "checkpoint.model@1@1", rank=1) == -signal.SIGKILL
    assert steps(root) == [40, 50]


@pytest.mark.parametrize("order", ["checkpoint.model", "@1", "x@one", "x@1@2@3"])
def test_a_malformed_fault_is_an_error(monkeypatch, order):
    monkeypatch.setenv("DMD_FAULT", order)
    with pytest.raises(ValueError, match="NAME@COUNT"):
        fault_point("x")
