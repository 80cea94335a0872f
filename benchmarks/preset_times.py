"""How long a training step, an epoch and its validation take, for each preset, on a CPU.

    python -m benchmarks.preset_times benchmarks/results/preset_times.csv   # ten minutes and more of an idle machine
    python -m benchmarks.preset_tables                                      # what docs/expected-times.md shows of it

A step is a whole one on the DeepSpeed engine in one process: read, forward, objective, backward, clip, update. The
data are random numbers of the shapes in `benchmarks.preset_tables`; its split sizes give the steps of an epoch and the
samples of a validation. Wall time is that of the machine as it is. CPU time is what the process computed, which other
programs disturb less: on one thread of an idle machine both are the same. `load` is the load average when a preset's
measurement began.
"""

import argparse
import itertools
import math
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.one_rank import join_alone
from benchmarks.paired_timing import seconds
from benchmarks.preset_tables import SHAPES, DataShape
from benchmarks.tables import Table, commit, processor
from data_shards.format.schema import SPLITS, Sample
from data_shards.reading.reader import ShardReader
from data_shards.writing.build import build
from dmd.config import Config
from dmd.config.loading import load_config
from dmd.data.loader import training_steps
from dmd.data.targets import resolve_task
from dmd.evaluation.evaluate import evaluate
from dmd.training.passes import settle_passes, settled
from dmd.training.step import make_plan, train_step
from launch.trainer.build import build_system
from launch.trainer.engine import DeepSpeedEngine
from launch.trainer.host_tuning import keep_freed_memory

VALIDATED = 64
"""Samples whose validation is timed."""


class RandomSource:
    """Random samples of a shape for so many samples of the training and the validation split."""

    def __init__(self, shape: DataShape, *, train: int, valid: int) -> None:
        self.name = "random"
        self._shape = shape
        self._counts = {"train": train, "valid": valid}

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return dict(self._counts)

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop`; no two alike."""
        shape = self._shape
        for i in range(start, stop):
            draw = np.random.default_rng((SPLITS.index(split), i))
            text, audio, vision = (
                draw.standard_normal(size, dtype=np.float32) for size in zip(shape.steps, shape.features, strict=True)
            )
            label, class_label, emotions = self._labels(i)
            yield Sample(
                id=f"{split}{i}",
                split=split,
                label=label,
                class_label=class_label,
                emotions=emotions,
                raw_text="",
                text=text,
                audio=audio,
                vision=vision,
                lengths=shape.steps,
            )

    def _labels(self, i: int) -> tuple[float, int | None, NDArray[np.uint8] | None]:
        """Sentiment, class and emotions of sample `i`."""
        labels = self._shape.labels
        if labels is None:
            return i % 31 / 5 - 3, None, None
        if labels.emotions:
            present = [(i >> number) % 2 for number in range(len(labels.emotions))]
            return math.nan, None, np.array(present, dtype=np.uint8)
        return math.nan, i % len(labels.class_names), None


@dataclass(frozen=True)
class Times:
    """Seconds (wall, CPU) of each step, and of the validation of `VALIDATED` samples."""

    steps: list[tuple[float, float]]
    validation: tuple[float, float]
    at_once: int


def time_preset(preset: str, config: Config, device: torch.device, folder: Path, rounds: int) -> Times:
    """Train `rounds` steps after one that nobody counts, then validate."""
    shape = SHAPES[preset]
    samples = config.train.ghost_batch_size * config.train.ghost_batches_per_step * (rounds + 1)
    build(RandomSource(shape, train=samples, valid=VALIDATED), folder, labels=shape.labels)
    with ShardReader(folder) as reader:
        info = reader.index.info
        config = resolve_task(config, info)
        system, _ = build_system(config, info, device)
        config = settled(config, settle_passes(system, config, info, 1))
        plan = make_plan(config, samples, 1)
        engine = DeepSpeedEngine(system, config, plan, device)
        source = iter(training_steps(reader, plan, config.data, seed=0, rank=0, epoch=0))
        numbers = itertools.count()

        def step() -> None:
            train_step(engine, next(source), config, plan, step=next(numbers), step_in_epoch=0)

        times = [seconds(step) for _ in range(rounds + 1)][1:]
        validation = seconds(lambda: evaluate(system, reader, "valid", config, device=device))
        return Times(times, validation, plan.ghost_batches_per_forward)


def measure(options: argparse.Namespace) -> None:
    """A row for each preset and number of threads, in the file as soon as it is measured."""
    keep_freed_memory()
    device = join_alone()
    about = {
        "cores": os.cpu_count(),
        "processor": processor(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
        "commit": commit(),
    }
    table = Table(options.out)
    for preset in options.presets:
        config = load_config(preset)
        shape = SHAPES[preset]
        for threads in options.threads:
            torch.set_num_threads(threads)
            load = os.getloadavg()[0]
            with tempfile.TemporaryDirectory() as folder:
                times = time_preset(preset, config, device, Path(folder), options.rounds)
            step_samples = config.train.ghost_batch_size * config.train.ghost_batches_per_step
            wall, cpu = (statistics.median(clock) for clock in zip(*times.steps, strict=True))
            row = {
                "preset": preset,
                "device": "CPU",
                "threads": threads,
                "step_samples": step_samples,
                "at_once": times.at_once,
                "steps": math.ceil(shape.train / step_samples),
                "step_s": f"{wall:.4g}",
                "step_cpu_s": f"{cpu:.4g}",
                "valid": shape.valid,
                "valid_sample_s": f"{times.validation[0] / VALIDATED:.4g}",
                "valid_sample_cpu_s": f"{times.validation[1] / VALIDATED:.4g}",
                "rounds": options.rounds,
                "load": f"{load:.1f}",
                **about,
            }
            table.add(row)
            print(row, flush=True)


def main() -> None:
    """Measure presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="CSV")
    parser.add_argument("--presets", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="steps that are counted (default: 3)")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
