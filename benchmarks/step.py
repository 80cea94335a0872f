"""A training step's forward and backward against the straightforward form, features only, on this machine.

    python -m benchmarks.step aligned --ghost-batches 2 --out benchmarks/results/step_cpu.csv

Both sides run in one process, in turns, after one warm-up each; the table gives medians. CPU seconds are those of the
process, which another process beside it disturbs less than wall time. `--peak ours|baseline` runs one side once and
prints the peak resident memory of the process.
"""

import argparse
import copy
import csv
import os
import platform
import resource
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.straightforward import straightforward
from dmd.kernels.noise import Noise
from dmd.losses import Objective, ObjectiveConfig
from dmd.model import DMD
from dmd.presets import load_config
from dmd.training.provenance import git_commit

DIMS = {"mosi": {"text": 768, "audio": 5, "vision": 20}, "mosei": {"text": 768, "audio": 74, "vision": 35}}
LENGTHS = {
    "mosi-aligned": (50, 50, 50), "mosi-unaligned": (50, 375, 500), "mosei-aligned": (50, 50, 50),
    "mosei-unaligned": (50, 500, 500),
}  # fmt: skip
SIZE = 16


class Side:
    """One form of the model, and its step over ghost batches `at_once` at a time."""

    def __init__(self, model: DMD, losses: Objective, at_once: int) -> None:
        self.model, self.losses, self.at_once = model, losses, at_once

    def step(self, parts: list[Tensor], labels: Tensor) -> None:
        for first in range(0, len(labels), self.at_once):
            ghosts = range(first, min(first + self.at_once, len(labels)))
            rows = slice(ghosts.start * SIZE, ghosts.stop * SIZE)
            noise = Noise(seed=1, step=0, ghosts=ghosts, ghost_size=SIZE, device=torch.device("cpu"))
            chunk = labels[ghosts.start : ghosts.stop]
            terms = self.losses(self.model(*(part[rows] for part in parts), noise), chunk, torch.ones_like(chunk))
            terms["total"].sum().backward()
        self.model.zero_grad()
        self.losses.zero_grad()


def timed(side: Side, parts: list[Tensor], labels: Tensor) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    side.step(parts, labels)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure one preset and add a row to the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", choices=LENGTHS)
    parser.add_argument("--ghost-batches", type=int, default=2, help="of the measured step")
    parser.add_argument("--at-once", type=int, default=1, help="ghost batches per forward, ours")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peak", choices=["ours", "baseline"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = load_config(options.preset)
    dims = DIMS[options.preset.split("-")[0]]
    lengths = dict(zip(dims, LENGTHS[options.preset], strict=True))
    model, losses = DMD(config.model, dims, lengths), Objective(ObjectiveConfig(), config.model)
    sides = {
        "ours": Side(model, losses, options.at_once),
        "baseline": Side(straightforward(copy.deepcopy(model)), losses, 1),
    }  # fmt: skip
    parts = [torch.randn(options.ghost_batches * SIZE, lengths[m], dims[m]) for m in lengths]
    labels = torch.randint(-15, 16, (options.ghost_batches, SIZE)) / 5
    if options.peak:
        sides[options.peak].step(parts, labels)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{options.preset} {options.peak}: peak {peak:.2f} GiB")
        return
    runs = [{name: timed(side, parts, labels) for name, side in sides.items()} for _ in range(options.repeats + 1)][1:]
    ratios = [statistics.median(run["baseline"][i] / run["ours"][i] for run in runs) for i in (0, 1)]
    row = {
        "preset": options.preset, "ghost_batches": options.ghost_batches, "at_once": options.at_once,
        "threads": options.threads, "baseline_over_ours_wall": round(ratios[0], 2),
        "baseline_over_ours_cpu": round(ratios[1], 2), "repeats": options.repeats,
        "machine": f"{platform.processor() or platform.machine()} {os.cpu_count()} cores",
        "torch": torch.__version__, "commit": git_commit(),
    }  # fmt: skip
    print(row)
    if options.out is not None:
        new = not options.out.exists()
        with options.out.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, row.keys())
            if new:
                writer.writeheader()
            writer.writerow(row)


if __name__ == "__main__":
    main()
