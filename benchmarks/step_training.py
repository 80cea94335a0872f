"""Training steps fed by the loader against the same steps on a batch held in memory: the loader must not show."""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.loader_sides import prepare
from data_shards.index import ShardIndex
from data_shards.reader import ShardReader
from dmd.data.loader import Batch, training_steps
from dmd.presets import load_config
from dmd.training.step import make_plan, train_step
from dmd.training.system import TrainingSystem, adam

SHAPES = {"mosi-aligned": "MOSI aligned", "mosei-aligned": "MOSEI aligned", "mosei-unaligned": "MOSEI unaligned"}


class PlainEngine:
    """One rank without DeepSpeed, which a machine without a compiler can run; `dmd.training.engine.Engine`'s steps."""

    rank, num_ranks = 0, 1
    device = torch.device("cpu")

    def __init__(self, system: TrainingSystem, optimizer: torch.optim.Optimizer) -> None:
        self.system, self.optimizer = system, optimizer

    def forward(self, *arguments: object) -> dict[str, Tensor]:
        """Loss terms of a batch."""
        terms: dict[str, Tensor] = self.system(*arguments)
        return terms

    def backward(self, loss: Tensor) -> None:
        """Add gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, loss: Tensor) -> tuple[Tensor, bool]:
        """Clip by value and update."""
        torch.nn.utils.clip_grad_value_(self.system.parameters(), 0.6)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss, True


def training_against_step(preset: str, at_once: int, rounds: int) -> dict[str, float]:
    """Samples per second of both, and the median of their ratio over pairs of steps that alternate."""
    config = load_config(preset, [f"train.ghost_batches_per_forward={at_once}"])
    per_step = config.train.ghost_batch_size * config.train.ghost_batches_per_step
    with tempfile.TemporaryDirectory() as folder:
        root = prepare(Path(folder), SHAPES[preset], per_step * (rounds + 1))
        reader = ShardReader(root)
        plan = make_plan(config, reader.index.num_samples("train"), 1)
        torch.manual_seed(0)
        system = TrainingSystem(config, ShardIndex.load(root).info, None, torch.device("cpu"))
        engine = PlainEngine(system, adam(system, config))
        read: list[float] = []
        held: list[float] = []
        kept: list[Batch] = []
        steps = iter(training_steps(reader, plan, config.data, seed=0, rank=0, epoch=0))
        for number in range(plan.num_steps):
            begin = time.perf_counter()
            batches = next(steps)
            train_step(engine, batches, config, plan, step=number, step_in_epoch=number)  # type: ignore[arg-type]
            read.append(time.perf_counter() - begin)
            kept = kept or batches
            begin = time.perf_counter()
            train_step(engine, kept, config, plan, step=number, step_in_epoch=number)  # type: ignore[arg-type]
            held.append(time.perf_counter() - begin)
    ratio = statistics.median(a / b for a, b in zip(held[1:], read[1:], strict=True))
    return {
        "training": per_step / statistics.median(read[1:]), "step alone": per_step / statistics.median(held[1:]),
        "training / step alone": ratio,
    }  # fmt: skip
