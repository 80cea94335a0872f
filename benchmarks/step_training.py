"""Training steps on a DeepSpeed engine, fed by the loader, against the same steps on a batch held in memory (the loader
must not show) and against their forward and backward passes alone (nor may the engine, clip, update and log)."""

import itertools
import statistics
import tempfile
from pathlib import Path

from benchmarks.loader_sides import prepare
from benchmarks.one_rank import join_alone
from benchmarks.paired_timing import alternate
from data_shards.reading.reader import ShardReader
from dmd.config.loading import load_config
from dmd.data.loader import Batch, training_steps
from dmd.training.step import make_plan, make_rng, train_step
from launch.trainer.build import build_system
from launch.trainer.engine import DeepSpeedEngine

SHAPES = {"mosi-aligned": "MOSI aligned", "mosei-aligned": "MOSEI aligned", "mosei-unaligned": "MOSEI unaligned"}


def training_against_step(preset: str, at_once: int, rounds: int) -> dict[str, float]:
    """Samples per second of the three, and the medians of their ratios over steps in alternation."""
    device = join_alone()
    config = load_config(preset, ["model.task=regression", f"train.ghost_batches_per_forward={at_once}"])
    per_step = config.train.ghost_batch_size * config.train.ghost_batches_per_step
    with tempfile.TemporaryDirectory() as folder:
        reader = ShardReader(prepare(Path(folder), SHAPES[preset], per_step * (rounds + 2)))
        plan = make_plan(config, reader.index.num_samples("train"), 1)
        system, _ = build_system(config, reader.index.info, device)
        engine = DeepSpeedEngine(system, config, plan, device)
        source = iter(training_steps(reader, plan, config.data, seed=0, rank=0, epoch=0))
        kept = next(source)

        numbers = itertools.count()

        def step(batches: list[Batch]) -> None:
            train_step(engine, batches, config, plan, step=next(numbers), step_in_epoch=0)

        def passes() -> None:
            number = next(numbers)
            for batch in kept:
                rng = make_rng(batch, config, step=number, forward=0, device=device, keys=system.keys)
                system(batch, rng).total.mean().backward()
            system.zero_grad()

        times = alternate(
            {"training": lambda: step(next(source)), "step alone": lambda: step(kept), "passes alone": passes}, rounds
        )
    wall = {side: [found[0] for found in times[side]] for side in times}
    figures = {side: per_step / statistics.median(values) for side, values in wall.items()}
    for other in ("step alone", "passes alone"):
        pairs = zip(wall[other], wall["training"], strict=True)
        figures[f"training / {other}"] = statistics.median(a / b for a, b in pairs)
    return figures
