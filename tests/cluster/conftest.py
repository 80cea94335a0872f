"""The environment of the tests' clusters, before Ray is imported, since Ray reads it once: workers that are as urgent
as other processes (Ray's niceness of 15 starves them beside any), and the `python` of this environment first, which
jobs start, as in an activated one. Nothing in it tells Ray or `dmd` of a token: users' environments do not either.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
    os.environ.pop(name, None)
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home directory of a user who has run `dmd tune` before: with a token, which Ray had made readable for all."""
    path = tmp_path_factory.mktemp("home")
    (path / ".ray").mkdir()
    (path / ".ray" / "auth_token").write_text("of-the-cluster-tests" * 2)
    (path / ".ray" / "auth_token").chmod(0o644)
    return path


@pytest.fixture(autouse=True, scope="module")
def _at_home(home: Path) -> Iterator[None]:
    """Every cluster and command of a module runs with that home; what Ray sets in this process ends with the module."""
    before = dict(os.environ)
    os.environ["HOME"] = str(home)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As actors of one CPU have: sums over several threads are other sums in the last digit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
