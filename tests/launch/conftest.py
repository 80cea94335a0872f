"""Shards and reference runs that the launch tests share; a test that starts ranks begins in an empty directory."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data_shards.commands import shard
from tests.support.disks import small_disk
from tests.support.ranks import finish

os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """112 samples to train on, 16 to validate."""
    path = tmp_path_factory.mktemp("launch") / "shards"
    assert shard(["--synthetic", "--samples", "160", "--samples-per-shard", "32", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def reference(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Uninterrupted runs: `reference(*overrides, ranks=2)`; each is trained once."""
    runs: dict[tuple[object, ...], Path] = {}

    def find(*overrides: str, ranks: int = 1) -> Path:
        key = (*overrides, ranks)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("reference") / "run"
            finish(shards, runs[key], *overrides, ranks=ranks)
        return runs[key]

    return find


@pytest.fixture(scope="session")
def half_done(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Copies of a run of one rank that has saved every second step up to 8: `half_done(folder)`."""
    made = tmp_path_factory.mktemp("half-done") / "run"
    finish(shards, made, "train.save_every=2", "train.max_steps=8")
    return lambda folder: shutil.copytree(made, folder / "run")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MiB."""
    with small_disk(tmp_path / "disk", "16m") as path:
        yield path
