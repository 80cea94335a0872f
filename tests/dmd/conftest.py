"""Shards and small runs that the tests of predictions, reports and documents read; nobody writes into them."""

from pathlib import Path

import pytest

from tests.dmd.trained import make_shards, train


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
