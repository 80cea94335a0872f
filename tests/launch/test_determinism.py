"""`train.deterministic`: its switches, and that it changes nothing on a CPU, which is bitwise reproducible anyway."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.network.rank_environment import rank_environment
from launch.starting.environment import forwarded
from launch.trainer.determinism import WORKSPACE, make_deterministic, restored_determinism
from tests.support.ranks import TINY, assert_bitwise, finish

SWITCHES = """
import json, os, torch
def switches():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    return {
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warns only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fills": torch.utils.deterministic.fill_uninitialized_memory,
        "cudnn": cudnn.deterministic, "benchmark": cudnn.benchmark, "math": cuda.math_sdp_enabled(),
        "others": cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled(),
    }
"""
RANK = """
import sys
seen = {"before": switches()}
from launch.trainer import engine
from launch.trainer.main import main
from launch.supervision.channels import Channels
join = engine.join_process_group
def look_and_join(*arguments):
    seen["joining"] = {**switches(), "cuda runs": torch.cuda.is_initialized()}
    return join(*arguments)
engine.join_process_group = look_and_join
code = main(sys.argv[1:], lambda: False, Channels())
seen["after"] = switches()
print(json.dumps(seen))
sys.exit(code)
"""
ON = {
    "algorithms": True,
    "warns only": False,
    "fills": False,
    "cudnn": True,
    "benchmark": False,
    "math": True,
    "others": False,
}


def rank(shards: Path, run: Path, *overrides: str, **env: str) -> dict[str, dict[str, object]]:
    """The switches of a rank before it begins, when it joins the others, and at its end."""
    arguments = ["--data", str(shards), "--run", str(run), *TINY, "train.max_steps=1", *overrides]
    environment = {
        **{name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"},
        **rank_environment(rank=0, ranks=1, port=0),
        **env,
    }
    command = [sys.executable, "-c", SWITCHES + RANK, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    seen: dict[str, dict[str, object]] = json.loads(ended.stdout.splitlines()[-1])
    return seen


def test_a_rank_is_deterministic_before_it_joins_the_others(shards, tmp_path):
    seen = rank(shards, tmp_path / "run", "train.deterministic=true")
    assert seen["joining"] == {**ON, "workspace": ":4096:8", "cuda runs": False}
    assert seen["after"] == {**ON, "workspace": ":4096:8"}


@pytest.mark.parametrize(("own", "workspace"), [(":16:8", ":16:8"), (":4096:8", ":4096:8"), (":0:0", ":4096:8")])
def test_a_deterministic_workspace_of_the_user_stays(own, workspace):
    environment = {WORKSPACE: own}
    with restored_determinism():
        make_deterministic(environment)
    assert environment == {WORKSPACE: workspace}


def test_no_switch_is_touched_without_it(shards, tmp_path):
    seen = rank(shards, tmp_path / "run")
    assert seen["after"] == seen["before"]
    assert seen["before"]["workspace"] is None
    assert not seen["before"]["algorithms"]
    assert seen["before"]["others"]


def test_the_workspace_reaches_every_host():
    assert forwarded({"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HOME": "/"}) == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2])
def test_results_on_a_cpu_are_bitwise_identical_with_and_without_it(shards, reference, tmp_path, stage):
    run, on = tmp_path / "run", ("train.deterministic=true", f"train.zero_stage={stage}")
    for limit in ("train.max_steps=3", "train.max_steps=10"):
        finish(shards, run, *on, limit, ranks=2)
    assert_bitwise(run, reference(f"train.zero_stage={stage}", ranks=2))
