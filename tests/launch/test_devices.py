"""Where ranks run: a wish for the CPU and a choice of GPUs reach every rank; a rank has a GPU of its own."""

import json
import os
import subprocess
import sys

import pytest
import torch

from launch.devices import check_ranks, restore_visible_devices, save_visible_devices
from launch.network.ports import reserved_port
from launch.starting.rank_layout import RankLayout
from launch.starting.rank_processes import SCRIPT
from launch.starting.runner import launcher_command


def through(environment: dict[str, str], launcher: dict[str, str]) -> dict[str, str]:
    """What a rank sees of an environment when a launcher has set some of it."""
    there = dict(environment)
    save_visible_devices(there)
    there.update(launcher)
    restore_visible_devices(there)
    return there


def test_a_choice_of_gpus_survives_the_launcher():
    launcher = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert through({}, launcher)["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert through({"CUDA_VISIBLE_DEVICES": "3,2"}, launcher)["CUDA_VISIBLE_DEVICES"] == "3,2"
    assert through({"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}, launcher)["CUDA_VISIBLE_DEVICES"] == "GPU-8932f937"
    assert through({"CUDA_VISIBLE_DEVICES": ""}, launcher)["CUDA_VISIBLE_DEVICES"] == ""
    stale = {"DMD_VISIBLE_DEVICES": "7"}
    assert through(stale, launcher)["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_a_rank_on_the_cpu_sees_no_gpu():
    for chosen in ({}, {"CUDA_VISIBLE_DEVICES": "3,2"}):
        assert through({"DS_ACCELERATOR": "cpu", **chosen}, {"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == ""
    untouched = {"DS_ACCELERATOR": "cuda"}
    restore_visible_devices(untouched)
    assert untouched == {"DS_ACCELERATOR": "cuda"}


def test_a_rank_needs_a_gpu_of_its_own():
    check_ranks(4, 4)
    check_ranks(4, 0)
    with pytest.raises(ValueError, match=r"3 ranks on this host, which offers 1 GPU; .* start 1, or set DS_ACC"):
        check_ranks(3, 1)


PRINT_DEVICES = """
import json, os, sys
from launch.devices import save_visible_devices, restore_visible_devices
before = os.environ.get("CUDA_VISIBLE_DEVICES")
restore_visible_devices(os.environ)
if os.environ["RANK"] == "1":
    print("seen", json.dumps([before, os.environ["DMD_VISIBLE_DEVICES"], os.environ["CUDA_VISIBLE_DEVICES"]]))
"""


@pytest.mark.multiproc
@pytest.mark.slow
def test_the_launcher_itself_replaces_the_users_choice_of_gpus(tmp_path):
    """If this fails because it no longer does, `save_visible_devices` and `restore_visible_devices` may go."""
    script = tmp_path / "print_devices.py"
    script.write_text(PRINT_DEVICES)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "5,6", "DS_ACCELERATOR": "cpu"}
    save_visible_devices(environment)
    with reserved_port() as port:
        layout = RankLayout(ranks=2, port=port)
        command = [str(script) if word == str(SCRIPT) else word for word in launcher_command(layout, [])]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    lines = [line.removeprefix("seen ") for line in ended.stdout.splitlines() if line.startswith("seen ")]
    assert json.loads(lines[0]) == ["0,1", "5,6", ""]


OWN = """
from dmd.kernels.backend import default_device
from launch.starting.runner import default_ranks
print(default_device(), default_ranks())
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("env", "seen"),
    [
        ({"DS_ACCELERATOR": "cpu"}, ["cpu", "1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["cpu", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "0"}, ["cuda:0", "1"]),
    ],
)
def test_the_device_before_any_rank_starts(env, seen):
    inherited = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-c", OWN]
    result = subprocess.run(command, env={**inherited, **env}, capture_output=True, text=True, check=True)
    assert result.stdout.split() == seen
