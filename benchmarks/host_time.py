"""Host time of an optimizer step with Triton kernels, on a machine without a GPU.

    python -m benchmarks.host_time [--preset mosi-aligned] [--steps 40] [--profile]

Triton binds, specialises and launches its kernels by a driver that does nothing (`benchmarks.offline_driver`). torch's
operations run on the CPU; few samples, short sequences and narrow features leave them little to compute, and the
launches are those of the preset. `launches` is the time inside `dmd.kernels.common.launching.launch`, `step` that of a
whole `dmd.training.step.train_step` without the optimizer's update. In ms of this thread's CPU time, which a busy
machine stretches less than the wall's: median and least of the steps.
"""

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.offline_driver import offline  # before a kernel is defined
from benchmarks.step_sides import LENGTHS, STEP
from dmd.config.loading import load_config
from dmd.data.synthetic import random_batch
from dmd.kernels.backend import Execution
from dmd.kernels.triton_backend import TRITON
from dmd.system.pass_terms import PassTerms
from dmd.system.system import TrainingSystem
from dmd.training.step import make_plan, train_step

FRAMES, FEATURES, SAMPLES = 8, 8, 2
"""Time steps and features of every modality, samples of a ghost batch."""
CAPABILITY = 90
"""Compute capability to compile for."""


class Updateless:
    """An engine of one rank that updates nothing."""

    num_ranks = 1

    def __init__(self, system: TrainingSystem) -> None:
        self.system, self.device = system, system.device

    def forward(self, *arguments: Any) -> PassTerms:
        """The system's own."""
        terms: PassTerms = self.system(*arguments)
        return terms

    def backward(self, loss: Tensor) -> None:
        """Autograd's."""
        loss.backward()

    def step(self, numbers: Tensor) -> tuple[list[float], bool]:
        """Clears the gradients."""
        self.system.zero_grad()
        return [*numbers.tolist(), 0.0], True


class Clock:
    """Stands for `launch` in every module that has it, and adds up its time."""

    def __init__(self) -> None:
        self.seconds, self.launches = 0.0, 0
        modules = [m for name, m in sys.modules.items() if name.startswith("dmd.kernels.") and hasattr(m, "launch")]
        self.launch = modules[0].launch
        for module in modules:
            assert module.launch is self.launch
            vars(module)["launch"] = self

    def __call__(self, kernel: Any, grid: Any, /, **arguments: Any) -> None:
        begin = time.thread_time()
        self.launch(kernel, grid, **arguments)
        self.seconds += time.thread_time() - begin
        self.launches += 1


def make_system(
    preset: str, overrides: Sequence[str] = (), device: torch.device | None = None
) -> tuple[TrainingSystem, Any, Any]:
    """A preset's system with Triton kernels in bf16, its config and a batch of a step.

    Args:
        device: None: the CPU, where a driver must stand for a card's.
    """
    kernels = "plain" if device is None else "fused"
    settings = [f"train.kernels={kernels}", f"train.ghost_batch_size={SAMPLES}", *overrides]
    config = load_config(preset, ["model.task=regression", *settings])
    names = ("text", "audio", "vision")
    info = SimpleNamespace(
        dims=dict.fromkeys(names, FEATURES), lengths=dict.fromkeys(names, FRAMES), text_kind="features", vocab_size=0
    )
    torch.manual_seed(0)
    system: Any = TrainingSystem(config, info, None, device or torch.device("cpu"))  # type: ignore[arg-type]
    if device is None:
        system.execution = Execution(backend=TRITON, reason="measured", precision="bf16")
        system.network.use(TRITON)
        system.objective.use(TRITON)
        system.keys = system.fresh_keys()
    batch = random_batch(info, STEP, SAMPLES)  # type: ignore[arg-type]
    return system.to(device or torch.device("cpu")), config, batch


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=LENGTHS, default="mosi-aligned")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--profile", action="store_true", help="print where a step's time goes, under cProfile")
    options = parser.parse_args()
    torch.set_num_threads(1)
    system, config, batch = make_system(options.preset)
    engine: Any = Updateless(system)
    plan = make_plan(config, SAMPLES * STEP, 1)
    clock = Clock()

    def step(number: int) -> tuple[float, float]:
        clock.seconds, clock.launches = 0.0, 0
        begin = time.thread_time()
        train_step(engine, [batch], config, plan, step=number, step_in_epoch=0)
        return time.thread_time() - begin, clock.seconds

    with offline(CAPABILITY, noting=False):
        for number in range(3):
            step(number)
        found = [step(number) for number in range(3, 3 + options.steps)]
        for name, times in zip(("step", "launches"), zip(*found, strict=True), strict=True):
            print(f"{name}: median {1e3 * statistics.median(times):.2f}, least {1e3 * min(times):.2f} ms")
        print(f"{clock.launches} launches")
        if options.profile:
            profile = cProfile.Profile()
            profile.runcall(lambda: [step(number) for number in range(20)])
            pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
