"""What a checkpoint costs: step time with saving every 20 steps over step time without, and the size on disk.

    python -m benchmarks.checkpoint SHARDS OUT.csv --preset mosi-aligned [--steps 80] [section.key=value ...]

One rank on this machine. Both runs alternate in blocks so that a busy machine slows both; medians over all steps. A
row is added to OUT.csv with the machine, the commit and the versions.
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.one_rank import join_alone
from dmd.checkpoint.format import Snapshot
from dmd.checkpoint.saver import CHECKPOINTS, Saver
from dmd.checkpoint.state import model_state
from dmd.config import Config
from dmd.config.loading import load_config
from dmd.data.loader import Batch, training_steps
from dmd.training.logging.provenance import git_commit, versions
from dmd.training.step import train_step
from launch.trainer.build import build_system
from launch.trainer.engine import DeepSpeedEngine
from launch.trainer.preflight import open_shards, plan_training

EVERY = 20


def step_maker(config: Config, data: str, run: Path, device: torch.device) -> Callable[[bool], float]:
    """A function that makes a step, saving after it or not, and says how many seconds it took."""
    reader = open_shards(data, config)
    plan = plan_training(config, reader, run, 1)
    system, _ = build_system(config, reader.index.info, device)
    engine = DeepSpeedEngine(system, config, plan, device)
    saver = Saver(run, config.train)
    count = 0

    def batches() -> Iterator[tuple[int, list[Batch]]]:
        epoch = 0
        while True:
            steps = training_steps(reader, plan, config.data, seed=config.train.seed, rank=0, epoch=epoch)
            yield from enumerate(steps)
            epoch += 1

    source = batches()

    def make(save: bool) -> float:
        nonlocal count
        begin = time.perf_counter()
        step_in_epoch, passes = next(source)
        train_step(engine, passes, config, plan, step=count, step_in_epoch=step_in_epoch)
        count += 1
        if save:
            saver.save(Snapshot(step=count, model=model_state(system), optimizer=engine.optimizer_state(), state={}))
        return time.perf_counter() - begin

    return make


def measure(config: Config, data: str, run: Path, device: torch.device, steps: int) -> dict[str, float]:
    """Seconds per step with and without saving every 20 steps, by blocks of 20, and the size of a checkpoint."""
    make = step_maker(config, data, run, device)
    for _ in range(5):
        make(False)
    plain: list[float] = []
    saving: list[float] = []
    for _ in range(-(-steps // EVERY)):
        plain += [make(False) for _ in range(EVERY)]
        saving += [make(True)] + [make(False) for _ in range(EVERY - 1)]
    mean = {"plain": statistics.mean(plain), "saving": statistics.mean(saving)}
    sizes = [file.stat().st_size for path in (run / CHECKPOINTS).glob("step_*") for file in path.iterdir()]
    return {
        "steps": len(plain),
        "median_plain_s": statistics.median(plain),
        "median_saving_s": statistics.median(saving),
        "ratio_of_medians": statistics.median(saving) / statistics.median(plain),
        "ratio_of_means": mean["saving"] / mean["plain"],
        "median_of_saving_steps_s": statistics.median(saving[::EVERY]),
        "checkpoint_mib": sum(sizes) / 2**20 / len(list((run / CHECKPOINTS).glob("step_*"))),
    }


def main() -> None:
    """Measure and append a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="SHARDS")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--preset")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args()
    device = join_alone()
    config = load_config(options.preset, ["model.task=regression", *options.overrides])
    with tempfile.TemporaryDirectory(dir=".") as folder:
        figures = measure(config, options.data, Path(folder), device, options.steps)
    known = versions()
    row = {
        "data": Path(options.data).name,
        "preset": options.preset,
        "overrides": " ".join(options.overrides),
        **{name: round(value, 5) for name, value in figures.items()},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "machine": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "commit": git_commit(),
        "torch": known["torch"],
        "deepspeed": known["deepspeed"],
        "python": known["python"],
    }
    fresh = not options.out.exists()
    with options.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print(", ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
