"""Training steps on a DeepSpeed engine, fed by the loader, against the same steps on a batch held in memory (the loader
must not show) and against their forward and backward passes alone (nor may the engine, clip, update and log)."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from benchmarks.loader_sides import prepare
from data_shards.reader import ShardReader
from dmd.data.loader import Batch, training_steps
from dmd.presets import load_config
from dmd.training.step import make_noise, make_plan, train_step
from launch.engine import DeepSpeedEngine, join_process_group
from launch.runner import free_port
from launch.setup import build_system

SHAPES = {"mosi-aligned": "MOSI aligned", "mosei-aligned": "MOSEI aligned", "mosei-unaligned": "MOSEI unaligned"}


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def training_against_step(preset: str, at_once: int, rounds: int) -> dict[str, float]:
    """Samples per second of the three, and the medians of their ratios over steps that take turns."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(free_port())}  # fmt: skip
    device = join_process_group(timedelta(minutes=5))
    config = load_config(preset, [f"train.ghost_batches_per_forward={at_once}"])
    per_step = config.train.ghost_batch_size * config.train.ghost_batches_per_step
    with tempfile.TemporaryDirectory() as folder:
        reader = ShardReader(prepare(Path(folder), SHAPES[preset], per_step * (rounds + 1)))
        plan = make_plan(config, reader.index.num_samples("train"), 1)
        system, _ = build_system(config, reader.index.info, device)
        engine = DeepSpeedEngine(system, config, plan, device)
        source = iter(training_steps(reader, plan, config.data, seed=0, rank=0, epoch=0))
        kept = next(source)

        def step(number: int, batches: list[Batch]) -> None:
            train_step(engine, batches, config, plan, step=number, step_in_epoch=number)

        def passes(number: int) -> None:
            for batch in kept:
                noise = make_noise(batch, config, step=number, forward=0, device=device, keys=system.keys)
                system(batch, noise)["total"].mean().backward()
            engine.optimizer.zero_grad()

        times: dict[str, list[float]] = {"training": [], "step alone": [], "passes alone": []}
        for number in range(1, rounds + 1):
            times["training"].append(seconds(lambda number=number: step(number, next(source))))
            times["step alone"].append(seconds(lambda number=number: step(number, kept)))
            times["passes alone"].append(seconds(lambda number=number: passes(number)))
    found = {side: per_step / statistics.median(values[1:]) for side, values in times.items()}
    for other in ("step alone", "passes alone"):
        pairs = zip(times[other][1:], times["training"][1:], strict=True)
        found[f"training / {other}"] = statistics.median(a / b for a, b in pairs)
    return found
