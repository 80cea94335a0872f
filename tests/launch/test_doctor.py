"""`dmd doctor` says how a training would run on the devices that are there."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dmd.kernels.common.cards import Card
from launch.doctor import cuda_compiler, how_it_trains

CUDA = torch.device("cuda", 1)


def test_the_whole_report_on_a_cpu(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "dmd.cli", "doctor", "--run", str(tmp_path), "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    for what in ("device ", "training ", "nvcc ", "all-reduce "):
        assert len([line for line in lines if line[4:].startswith(what)]) == 1, result.stdout
    training = next(line for line in lines if line[4:].startswith("training "))
    assert training.endswith("on cpu: kernels plain (there is no Triton for cpu devices), precision fp32")
    device = next(line for line in lines if line[4:].startswith("device "))
    assert device.endswith("sees no GPU)")
    assert "two ranks of this host, gloo" in result.stdout
    assert lines[-1] == "no check failed"


@pytest.mark.parametrize(
    ("card", "text"),
    [
        (Card(name="NVIDIA H100", capability=(9, 0)), "kernels fused (Triton on CUDA), precision bf16"),
        (
            Card(name="NVIDIA GeForce GTX 1080", capability=(6, 1)),
            "kernels plain (NVIDIA GeForce GTX 1080 (compute capability 6.1) is older than compute capability 8.0), "
            "precision fp32",
        ),
    ],
    ids=["hopper", "pascal"],
)
def test_how_a_card_trains(card, text):
    assert how_it_trains(CUDA, card).text == f"on cuda:1: {text}"


def compiler(path: Path, release: str) -> str:
    """An nvcc of a release."""
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.77'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_whether_nvcc_matches_torch_is_a_fact(tmp_path):
    nvcc = compiler(tmp_path / "nvcc", "12.8")
    for path, cuda, text in (
        (None, "12.8", "none; train.adam=deepspeed alone needs it"),
        (nvcc, "12.8", f"12.8 at {nvcc}, as torch is;"),
        (nvcc, "13.0", f"12.8 at {nvcc}, but torch is of CUDA 13.0;"),
        (nvcc, None, f"12.8 at {nvcc}, torch is built without CUDA;"),
    ):
        finding = cuda_compiler(path, cuda)
        assert finding.text.startswith(text)
        assert finding.ok is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_shows_its_capability(tmp_path):
    inherited = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}
    command = [sys.executable, "-m", "dmd.cli", "doctor", "--run", str(tmp_path), "--port", "0"]
    output = subprocess.run(command, capture_output=True, text=True, env=inherited).stdout
    assert "compute capability" in output
    assert "on cuda:0: kernels" in output
