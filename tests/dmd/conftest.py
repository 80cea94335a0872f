"""Shards and small runs that the tests of predictions, reports and documents read, into which nobody writes; a disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmd.checkpoint.writer import write_checkpoint
from tests.support import disks
from tests.support.snapshots import snapshot
from tests.support.trained import make_shards, train


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="session")
def runs(shards, tmp_path_factory) -> list[Path]:
    """Two seeds of one config, and a run of another."""
    folder = tmp_path_factory.mktemp("runs")
    return train(
        shards,
        {
            folder / "one": ["train.seed=1"],
            folder / "two": ["train.seed=2"],
            folder / "uniform": ["train.seed=1", "objective.prior=uniform"],
        },
    )


@pytest.fixture(scope="session")
def run(runs) -> Path:
    return runs[0]


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MiB with a checkpoint of step 10 on it."""
    with disks.small_disk(tmp_path / "disk", "1m") as disk:
        write_checkpoint(disk / "checkpoints", snapshot(10), keep=2)
        yield disk
