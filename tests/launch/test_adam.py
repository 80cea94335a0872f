"""Adam by device: torch's fused implementation makes the steps of its plain one, and continues its checkpoints."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import CUDA_HOME

from dmd.config.loading import load_config
from dmd.system.system import TrainingSystem, parameter_groups
from dmd.training.loop import Training
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment
from launch.trainer.adam import make_adam, without_architectures
from launch.trainer.build import build_system
from launch.trainer.engine import DeepSpeedEngine, join_process_group
from launch.trainer.preflight import open_shards, plan_training
from tests.support.ranks import PATIENCE, TINY, assert_bitwise, assert_close, finish, forks, last
from tests.support.small_system import make_system

CPU = torch.device("cpu")


def test_the_implementation_by_device():
    system, config = make_system("plain", "cpu")
    groups = parameter_groups(system, config)
    assert type(make_adam(groups, config, CPU)) is torch.optim.Adam
    assert make_adam(groups, config, CPU).defaults["fused"] is False
    assert make_adam(groups, config, CPU, fused=True).defaults["fused"] is True
    assert make_adam(groups, config, torch.device("cuda")).defaults["fused"] is True, "whatever was compiled"
    asked = replace(config, train=replace(config.train, adam="deepspeed"))
    with pytest.raises(ValueError, match=r"train\.adam is 'deepspeed', which needs a CUDA device.* on cpu; set train"):
        make_adam(groups, asked, CPU)


BUILD = """
import torch
from launch.trainer.adam import build_deepspeed_adam
try:
    build_deepspeed_adam([{"params": [torch.nn.Parameter(torch.ones(3))]}])
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it may be compiled")
def test_a_fused_adam_that_cannot_be_compiled_names_the_key():
    environment = {**os.environ, "DS_ACCELERATOR": "cuda"}
    result = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, env=environment)
    line = result.stdout.splitlines()[-1] if result.stdout else result.stderr
    assert "train.adam is 'deepspeed', but its FusedAdam cannot be compiled here (" in line
    assert "set train.adam=torch, or install an nvcc" in line


def test_a_list_of_architectures_is_not_read_and_not_lost(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    with without_architectures():
        assert "TORCH_CUDA_ARCH_LIST" not in os.environ
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0a"


def steps(system: TrainingSystem, optimizer: torch.optim.Optimizer, seeds: range) -> list[torch.Tensor]:
    """The weights after a step per seed; every third parameter gets a gradient in every second step only."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for number, parameter in enumerate(system.parameters()):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if number % 3 == 0 and seed % 2 else gradient.to(parameter.device)
        optimizer.step()
    return [parameter.detach().cpu().clone() for parameter in system.parameters()]


def test_torch_fused_adam_makes_the_steps_of_the_unfused_one():
    sides = []
    for fused in (False, True):
        system, config = make_system("plain", "cpu")
        optimizer = make_adam(parameter_groups(system, config), config, CPU, fused=fused)
        sides.append(steps(system, optimizer, range(6)))
        counts = {float(state["step"]) for state in optimizer.state.values()}
        assert counts == {3.0, 6.0}, "a parameter without a gradient is left alone"
    for got, want in zip(*sides, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "kind", ["torch", pytest.param("deepspeed", marks=pytest.mark.skipif(CUDA_HOME is None, reason="needs nvcc"))]
)
def test_adam_on_cuda_makes_the_steps_of_the_cpu(kind):
    sides = []
    for device in (CPU, torch.device("cuda")):
        system, config = make_system("plain", "cpu")
        if device.type == "cuda":
            config = replace(config, train=replace(config.train, adam=kind))
        system.to(device)
        sides.append(steps(system, make_adam(parameter_groups(system, config), config, device), range(6)))
    for got, want in zip(*sides, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)


def _train_with(argv: tuple[str, str, tuple[str, ...]], environment: dict[str, str]) -> None:
    """A rank's training as `launch.trainer.build` makes it, with torch's fused Adam on the CPU."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    data, run, overrides = argv
    config = load_config(None, ["model.task=regression", *TINY, *overrides])
    device = join_process_group(timedelta(seconds=120))
    reader = open_shards(data, config)
    plan = plan_training(config, reader, Path(run), int(environment["WORLD_SIZE"]))
    system, text_encoder = build_system(config, reader.index.info, device)
    engine = DeepSpeedEngine(system, config, plan, device, fused_adam=True)
    assert engine.optimizer.defaults["fused"]
    Training(engine, config, reader, Path(run), text_encoder=text_encoder, resume="auto").run()


def finish_fused(shards: Path, run: Path, *overrides: str, ranks: int = 2) -> None:
    """As `finish`, with torch's fused Adam."""
    port, processes = free_port(), []
    for rank in range(ranks):
        environment = rank_environment(rank=rank, ranks=ranks, port=port) | {"OMP_NUM_THREADS": "1"}
        argv = (str(shards), str(run), overrides)
        processes.append(forks.Process(target=_train_with, args=(argv, environment)))
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * ranks


@pytest.mark.multiproc
@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_fused_adam_on_every_zero_stage_continues_itself_and_the_unfused_one(shards, reference, tmp_path, stage):
    zero = f"train.zero_stage={stage}"
    whole, resumed, mixed = tmp_path / "whole", tmp_path / "resumed", tmp_path / "mixed"
    finish_fused(shards, whole, zero)
    assert_close(whole, reference(ranks=2))
    for limit in ("train.max_steps=3", "train.max_steps=10"):
        finish_fused(shards, resumed, zero, limit)
    assert_bitwise(resumed, whole)
    finish(shards, mixed, zero, "train.max_steps=3", ranks=1)
    finish_fused(shards, mixed, zero, "train.max_steps=6")
    finish(shards, mixed, "train.zero_stage=1", ranks=2)
    assert last(mixed).optimizer["step"] == 10
    assert_close(mixed, reference(ranks=2))
