"""How long a training step, an epoch and its validation take, for each preset, on a CPU.

    python -m benchmarks.preset_times measure benchmarks/results/preset_times.csv   # ten minutes and more, idle machine
    python -m benchmarks.preset_times tables      # what docs/expected-times.md shows of it and of the H100's rows

A step is a whole one on the DeepSpeed engine in one process: read, forward, objective, backward, clip, update. The
data are random numbers of the shapes below; their split sizes make steps of an epoch and the samples of a validation.
Wall time is that of the machine as it is. CPU time is what the process computed, which other programs disturb less: on
one thread of an idle machine both are the same. `load` is the load average when a preset's measurement began.
"""

import argparse
import csv
import itertools
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from benchmarks.one_rank import join_alone
from benchmarks.paired_timing import seconds
from benchmarks.tables import Table, commit, processor
from data_shards.format.schema import SPLITS, Sample
from data_shards.labels import Labels
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

RESULTS = Path(__file__).resolve().parent / "results"
MEASURED = RESULTS / "preset_times.csv"
H100 = RESULTS / "h100" / "step.csv"
VALIDATED = 64
"""Samples whose validation is timed."""
SIDES = {"fused": "Triton", "graph": "Triton as a CUDA graph", "plain": "PyTorch"}
SEVEN = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")
SIX = ("happy", "sad", "anger", "surprise", "disgust", "fear")


@dataclass(frozen=True, kw_only=True)
class DataShape:
    """What a preset is used on."""

    steps: tuple[int, int, int]
    """Time steps of text, audio and vision."""
    features: tuple[int, int, int]
    """Features per time step."""
    train: int
    """Samples of the split."""
    valid: int
    labels: Labels | None = None
    """None: sentiments in [-3, 3]."""


_MOSI, _MOSEI = (768, 5, 20), (768, 74, 35)
_ALIGNED = (50, 50, 50)
SHAPES = {
    "demo": DataShape(steps=_ALIGNED, features=_MOSI, train=448, valid=64),
    "mosi-aligned": DataShape(steps=_ALIGNED, features=_MOSI, train=1284, valid=229),
    "recommended": DataShape(steps=_ALIGNED, features=_MOSI, train=1284, valid=229),
    "mosi-unaligned": DataShape(steps=(50, 375, 500), features=_MOSI, train=1284, valid=229),
    "mosei-aligned": DataShape(steps=_ALIGNED, features=_MOSEI, train=16326, valid=1871),
    "mosei-unaligned": DataShape(steps=(50, 500, 500), features=_MOSEI, train=16326, valid=1871),
    "mosei-emotions": DataShape(steps=_ALIGNED, features=_MOSEI, train=16326, valid=1871, labels=Labels(emotions=SIX)),
    "sims": DataShape(steps=(39, 400, 55), features=(768, 33, 709), train=1368, valid=456),
    "simsv2": DataShape(steps=(50, 925, 232), features=(768, 25, 177), train=2722, valid=647),
    "iemocap": DataShape(
        steps=(20, 20, 20),
        features=(300, 74, 35),
        train=2717,
        valid=798,
        labels=Labels(emotions=("neutral", "happy", "sad", "angry"), protocol="iemocap"),
    ),
    "meld": DataShape(
        steps=_ALIGNED, features=_MOSEI, train=9989, valid=1109, labels=Labels(kind="classes", class_names=SEVEN)
    ),
    "urfunny": DataShape(
        steps=_ALIGNED,
        features=_MOSEI,
        train=7614,
        valid=980,
        labels=Labels(kind="binary", class_names=("serious", "humorous")),
    ),
}
"""Shapes and sizes as of the files that MMSA (MOSI, MOSEI, CH-SIMS) and MulT (IEMOCAP) read. MELD and UR-FUNNY have no
customary features: their splits, with the shapes of MOSEI."""


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
            yield Sample(
                id=f"{split}{i}",
                split=split,
                raw_text="",
                text=text,
                audio=audio,
                vision=vision,
                lengths=shape.steps,
                **self._label(i),
            )

    def _label(self, i: int) -> dict[str, object]:
        labels = self._shape.labels
        if labels is None:
            return {"label": i % 31 / 5 - 3}
        if labels.emotions:
            present = [(i >> number) % 2 for number in range(len(labels.emotions))]
            return {"label": math.nan, "emotions": np.array(present, dtype=np.uint8)}
        return {"label": math.nan, "class_label": i % len(labels.class_names)}


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


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _duration(value: float) -> str:
    """Seconds for people: two digits below a minute."""
    if value < 60:
        return f"{value:.2g} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def cpu_table(rows: list[dict[str, str]]) -> list[str]:
    """A line for each preset: step and epoch for each number of threads; of one thread by its CPU time."""
    threads = sorted({row["threads"] for row in rows}, key=int)
    titles = [f"{what}, {count} thread{'s' * (count != '1')}" for count in threads for what in ("step", "epoch")]
    lines = [_row(("preset", "time steps", "samples of an epoch", "steps", *titles)), _row(["---"] * (4 + len(titles)))]
    for preset, shape in SHAPES.items():
        found = {row["threads"]: row for row in rows if row["preset"] == preset}
        cells: list[object] = [f"`{preset}`", " / ".join(map(str, shape.steps)), shape.train]
        cells.append(next(iter(found.values()))["steps"])
        for count in threads:
            row, clock = found[count], "cpu_s" if count == "1" else "s"
            step, steps = float(row[f"step_{clock}"]), int(row["steps"])
            epoch = steps * step + int(row["valid"]) * float(row[f"valid_sample_{clock}"])
            cells += [_duration(step), _duration(epoch)]
        lines.append(_row(cells))
    return lines


def h100_table(rows: list[dict[str, str]]) -> list[str]:
    """A line for each measured preset and backend, the last measurement of each."""
    last = {
        (row["preset"], row["text"], row["side"]): row
        for row in rows
        if row["side"] in SIDES and row["samples"] == "160" and row["precision"] == "bf16"
    }
    titles = ("preset", "text", "backend", "forward, objective, backward", "times the steps of an epoch", "commit")
    lines = [_row(titles), _row(["---"] * len(titles))]
    for (preset, text, side), row in last.items():
        steps = math.ceil(SHAPES[preset].train / 160)
        what = "features" if text == "features" else "BERT-base"
        epoch = f"{steps} x {float(row['ms']):.3g} ms = {_duration(steps * float(row['ms']) / 1000)}"
        lines.append(_row((f"`{preset}`", what, SIDES[side], f"{float(row['ms']):.3g} ms", epoch, row["commit"][:7])))
    return lines


def tables() -> str:
    """Both tables, as docs/expected-times.md has them."""
    return "\n".join([*cpu_table(_read(MEASURED)), "", *h100_table(_read(H100)), ""])


def main() -> None:
    """Measure, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    measuring = commands.add_parser("measure", help="measure and write a CSV")
    measuring.add_argument("out", type=Path)
    measuring.add_argument("--presets", nargs="+", choices=SHAPES, default=list(SHAPES))
    measuring.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    measuring.add_argument("--rounds", type=int, default=3, help="steps that are counted (default: 3)")
    commands.add_parser("tables", help="print the tables of docs/expected-times.md")
    options = parser.parse_args()
    if options.command == "tables":
        sys.stdout.write(tables())
    else:
        measure(options)


if __name__ == "__main__":
    main()
