"""Ranks that were not given the same: each ends with exit code 2 before the first step, and says where and what."""

import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_shards.commands import shard
from data_shards.reading.index import ShardIndex
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment
from launch.trainer.agree import CODE, RUN, Report, explain
from tests.support.ranks import PATIENCE, TINY, Ended, errors, finish, train

pytestmark = pytest.mark.multiproc
ROOT = Path(__file__).parent.parent.parent
HOST = socket.gethostname()
USER_ERROR, STORAGE = 2, 74


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Shards of the same shapes and counts, with other samples."""
    path = tmp_path_factory.mktemp("others") / "shards"
    assert shard(["--synthetic", "--seed", "7", "--samples", "160", "--samples-per-shard", "32", str(path)]) == 0
    return path


def rejected(ended: Ended, ranks: int = 2, code: int = USER_ERROR) -> str:
    """The one line of output of ranks that are rejected."""
    assert ended.codes == [code] * ranks, ended.output
    lines = errors(ended.output)
    assert len(lines) == 1, ended.output
    assert "Traceback" not in ended.output
    return lines[0]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("train.seed", ("1", "2")),
        ("train.learning_rate", ("0.0001", "0.1")),
        ("train.epochs", ("2", "3")),
        ("data.window", ("16", "4")),
    ],
)
def test_another_config_on_one_rank(shards, tmp_path, key, values):
    run = tmp_path / "run"
    line = rejected(train(shards, run, ranks=3, own=[[f"{key}={values[n]}"] for n in (0, 1, 0)]), ranks=3)
    assert f"{key} is {values[0]} on {HOST} (ranks 0, 2), {values[1]} on {HOST} (rank 1)" in line
    assert not run.exists(), "nothing is left of a training that never began"


def test_what_may_differ_from_host_to_host_does_not_matter(shards, tmp_path):
    finish(shards, tmp_path / "run", "train.max_steps=2", ranks=2, own=[["data.workers=0"], ["data.workers=2"]])
    assert not list((tmp_path / "run").glob(".ranks-*"))


def test_other_data_on_one_rank(shards, others, tmp_path):
    line = rejected(train(shards, tmp_path / "run", ranks=2, own=[[], ["--data", str(others)]]))
    one, other = (ShardIndex.load(path).info.generation for path in (shards, others))
    assert f"the data generation is {one} on {HOST} (rank 0), {other} on {HOST} (rank 1)" in line


def test_a_restart_is_compared_too(shards, reference, tmp_path):
    """At another number of ranks, with the value that only one of them has got wrong."""
    run = tmp_path / "run"
    finish(shards, run, "train.max_steps=3", ranks=2)
    line = rejected(train(shards, run, ranks=3, own=[[], [], ["train.seed=5"]]), ranks=3)
    assert f"train.seed is 1111 on {HOST} (ranks 0, 1), 5 on {HOST} (rank 2)" in line
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000003"]


def test_ranks_that_cannot_see_the_run_directory(shards, tmp_path):
    """One has none at that path, another one has its own."""
    nowhere, own = tmp_path / "nowhere", tmp_path / "own"
    own.mkdir()
    places = [["--run", str(path)] for path in (tmp_path / "run", nowhere, own)]
    line = rejected(train(shards, tmp_path / "run", ranks=3, own=places), ranks=3)
    assert f"{RUN} is that of rank 0 on {HOST} (rank 0), not there at {nowhere} on {HOST} (rank 1), " in line
    assert f"another one at {own} on {HOST} (rank 2)" in line
    assert "put --run on storage that all hosts share" in line


def test_one_rank_that_is_rejected_ends_all_with_its_reason(shards, tmp_path):
    line = rejected(train(shards, tmp_path / "run", ranks=2, own=[[], ["--data", str(tmp_path / "nothing")]]))
    assert f"rank 1 on {HOST} cannot train: {tmp_path}/nothing" in line


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_a_config_ends_all_with_its_reason(shards, tmp_path, rank):
    """They would wait ten minutes for it, and end with 69: a script would repeat the command for ever."""
    own = [["train.sed=2"] if rank == number else [] for number in range(2)]
    line = rejected(train(shards, tmp_path / "run", ranks=2, own=own))
    assert "train.sed" in line
    assert "train.seed" in line


def test_what_dmd_train_has_rejected_on_a_host_reaches_the_others(shards, tmp_path, monkeypatch):
    assert "not today" in rejected(train(shards, tmp_path / "run", ranks=2, DMD_REJECTION="not today"))


def test_a_run_directory_that_cannot_be_made_is_the_storage_on_every_rank(shards, tmp_path):
    (tmp_path / "file").write_text("")
    there = ["--run", str(tmp_path / "file" / "run")]
    line = rejected(train(shards, tmp_path / "run", ranks=2, own=[there, there]), code=STORAGE)
    assert f"cannot write to {tmp_path}/file/run: Not a directory" in line


def two_trees(shards: Path, run: Path, trees: Sequence[Path], extra: Sequence[Path]) -> list[tuple[int, str]]:
    """One rank from each source tree, with a directory of further packages before it; exit code and output of each."""
    port, ranks = free_port(), []
    for rank, tree in enumerate(trees):
        environment = {
            **os.environ,
            **rank_environment(rank=rank, ranks=2, local_rank=0, local_ranks=1, port=port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{extra[rank]}:{tree}",
        }
        command = [sys.executable, str(tree / "launch" / "train.py"), "--data", str(shards), "--run", str(run), *TINY]
        ranks.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=run.parent
            )
        )
    outputs = [rank.communicate(timeout=PATIENCE)[0] for rank in ranks]
    return [(rank.returncode, text) for rank, text in zip(ranks, outputs, strict=True)]


@pytest.mark.slow
def test_another_checkout_and_another_package_on_one_host(shards, tmp_path):
    """Both hosts say so: each shows its own ranks alone."""
    tree, packages = tmp_path / "tree", tmp_path / "packages"
    for floor in ("data_shards", "dmd", "launch"):
        shutil.copytree(ROOT / floor, tree / floor, ignore=shutil.ignore_patterns("__pycache__"))
    with (tree / "dmd" / "losses" / "margin.py").open("a") as file:
        file.write("# changed on this host alone\n")
    metadata = packages / "webdataset-0.9.9.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: webdataset\nVersion: 0.9.9\n")
    there = importlib.metadata.version("webdataset")
    for code, text in two_trees(shards, tmp_path / "run", (ROOT, tree), (tmp_path / "none", packages)):
        assert code == USER_ERROR, text
        line = next(line for line in text.splitlines() if line.startswith("dmd train: error: "))
        assert "the ranks were not given the same: code is " in line
        assert "(commit unknown) on" in line
        assert f"the version of webdataset is {there} on {HOST} (rank 0), 0.9.9 on {HOST} (rank 1)" in line


def test_many_differences_are_counted():
    facts = [{RUN: "that of rank 0", CODE: "a", "x": str(n), "y": str(n), "z": str(n), "w": str(n)} for n in range(2)]
    reports = [Report(rank=n, host=f"node{n}", facts=own) for n, own in enumerate(facts)]
    message = explain(reports)
    assert "x is 0 on node0 (rank 0), 1 on node1 (rank 1); y is" in message
    assert "; and 1 more differ; give every host the same command, shards, code and packages" in message
    assert "\n" not in message
