"""A training step's forward and backward against the reference implementation, compiled or not, on a CPU.

    python -m benchmarks.step launches benchmarks/results/step_launches.csv
    python -m benchmarks.step time     benchmarks/results/step_time.csv
    python -m benchmarks.step memory   benchmarks/results/step_memory.csv
    python -m benchmarks.step passes   benchmarks/results/step_passes.csv
    python -m benchmarks.step profile  benchmarks/results/step_profile.csv
    python -m benchmarks.step training benchmarks/results/step_training.csv

Options choose presets, text (features or bert-base, of random weights), ghost batches and threads. All sides of a time
run in one process, in alternation, after a warm-up that nobody counts; the table has medians of the rounds, and the
median of their ratios. CPU seconds are those of the process, which another process beside it disturbs less than wall
time. A peak is measured in a process of its own, less what is resident before the step. `benchmarks.step_cuda` is for a
GPU.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from benchmarks.paired_timing import alternate, seconds
from benchmarks.step_profile import count, flops, product_rate, top_operations
from benchmarks.step_sides import LENGTHS, STEP, Sides, forget_peak, resident
from benchmarks.step_training import training_against_step
from dmd.training.logging.provenance import git_commit
from launch.trainer.host_tuning import keep_freed_memory

BOTH = ("ours", "reference")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure. `ghosts`: ghost batches of 16 in what was measured; `at_once`: of them in one forward pass."""

    preset: str
    text: str
    side: str
    ghosts: int
    at_once: int
    quantity: str
    value: float
    unit: str


def launches(preset: str, text: str, ghosts: int, options: argparse.Namespace) -> Iterator[Row]:
    """Of a whole step; with BERT ten times those of one ghost batch (reference) or of one pass (ours)."""
    sides = Sides(preset, ghosts=ghosts, bert=text != "features")
    for side in BOTH:
        found = count(sides.of(side))
        at_once = sides.at_once if side == "ours" else 1
        for quantity, value in zip(("launches", "syncs"), found, strict=True):
            yield Row(
                preset=preset,
                text=text,
                side=side,
                ghosts=ghosts,
                at_once=at_once,
                quantity=quantity,
                value=value,
                unit="",
            )


def timing(preset: str, text: str, ghosts: int, options: argparse.Namespace) -> Iterator[Row]:
    """Times, their ratio, and the floor that the machine's own product rate sets."""
    sides = Sides(preset, ghosts=ghosts, bert=text != "features")
    at_once = options.at_once or sides.at_once
    work = flops(sides.of("reference"))
    peers = ["reference", "compiled"] if options.compiled else ["reference"]
    times = alternate({**{peer: sides.of(peer) for peer in peers}, "ours": sides.of("ours", at_once)}, options.rounds)
    rate = product_rate(lambda product: seconds(product)[0])
    for number, clock in enumerate(("wall", "CPU")):
        taken = {side: [found[number] for found in times[side]] for side in times}
        for side in times:
            yield Row(
                preset=preset,
                text=text,
                side=side,
                ghosts=ghosts,
                at_once=at_once if side == "ours" else 1,
                quantity=clock,
                value=statistics.median(taken[side]),
                unit="s",
            )
        for peer in peers:
            yield Row(
                preset=preset,
                text=text,
                side=f"{peer} / ours",
                ghosts=ghosts,
                at_once=at_once,
                quantity=clock,
                value=statistics.median(b / a for a, b in zip(taken["ours"], taken[peer], strict=True)),
                unit="",
            )
    for quantity, value, unit in (
        ("floor", work / rate, "s"),
        ("product rate", rate / 1e9, "GFLOP/s"),
        ("achieved", work / statistics.median(found[0] for found in times["ours"]) / 1e9, "GFLOP/s"),
    ):
        yield Row(
            preset=preset,
            text=text,
            side="ours",
            ghosts=ghosts,
            at_once=at_once,
            quantity=quantity,
            value=value,
            unit=unit,
        )


def memory(preset: str, text: str, ghosts: int, options: argparse.Namespace) -> Iterator[Row]:
    """Peaks, each in a process of its own."""
    for side in BOTH:
        command = [
            sys.executable,
            "-m",
            "benchmarks.step",
            "peak",
            side,
            "--presets",
            preset,
            "--texts",
            text,
            "--ghosts",
            str(ghosts),
            "--threads",
            str(options.threads),
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found = output.splitlines()[-1].split()  # DeepSpeed may have said something before
        yield Row(
            preset=preset,
            text=text,
            side=side,
            ghosts=ghosts,
            at_once=int(found[1]),
            quantity="peak",
            value=float(found[0]),
            unit="GiB",
        )


def peak(side: str, options: argparse.Namespace) -> None:
    """Print one side's peak in GiB and its ghost batches per pass."""
    sides = Sides(options.presets[0], ghosts=options.ghosts, bert=options.texts[0] != "features")
    before = resident("VmRSS")
    forget_peak()
    sides.step(side)
    print(resident("VmHWM") - before, sides.at_once if side == "ours" else 1)


def passes(preset: str, text: str, ghosts: int, options: argparse.Namespace) -> Iterator[Row]:
    """Times of one step by `ghost_batches_per_forward`."""
    sides = Sides(preset, ghosts=ghosts, bert=text != "features")
    sizes = [size for size in (1, 2, 5, 10, 40) if size <= ghosts]
    times = alternate({str(size): sides.of("ours", size) for size in sizes}, options.rounds)
    for size in sizes:
        for number, clock in enumerate(("wall", "CPU")):
            yield Row(
                preset=preset,
                text=text,
                side="ours",
                ghosts=ghosts,
                at_once=size,
                quantity=clock,
                value=statistics.median(found[number] for found in times[str(size)]),
                unit="s",
            )


def profiled(preset: str, text: str, ghosts: int, options: argparse.Namespace) -> Iterator[Row]:
    """The ten operations that take most of a step, and the share of the text encoder."""
    sides = Sides(preset, ghosts=ghosts, bert=text != "features")
    sides.step("ours")
    for name, share, calls in top_operations(sides.of("ours")):
        yield Row(
            preset=preset,
            text=text,
            side=f"{name} ({calls} calls)",
            ghosts=ghosts,
            at_once=sides.at_once,
            quantity="share",
            value=share,
            unit="",
        )
    if text != "features":
        times = alternate({"all": sides.of("ours"), "text": sides.text_encoder}, options.rounds)
        share = statistics.median(t[1] / a[1] for a, t in zip(times["all"], times["text"], strict=True))
        yield Row(
            preset=preset,
            text=text,
            side="text encoder alone / step",
            ghosts=ghosts,
            at_once=sides.at_once,
            quantity="CPU",
            value=share,
            unit="",
        )


def training(preset: str, text: str, ghosts: int, options: argparse.Namespace) -> Iterator[Row]:
    """Samples per second of training steps fed by the loader and of the same steps on one batch in memory."""
    for side, value in training_against_step(preset, ghosts, options.rounds).items():
        yield Row(
            preset=preset,
            text=text,
            side=side,
            ghosts=ghosts,
            at_once=ghosts,
            quantity="throughput",
            value=value,
            unit="samples/s" if "/" not in side else "",
        )


TABLES = {
    "launches": launches,
    "time": timing,
    "memory": memory,
    "passes": passes,
    "profile": profiled,
    "training": training,
}


def main() -> None:
    """Measure one table and write it anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=[*TABLES, "peak"])
    parser.add_argument("out", help="CSV; or, for `peak`, the side")
    parser.add_argument("--presets", nargs="+", choices=LENGTHS, default=list(LENGTHS))
    parser.add_argument("--texts", nargs="+", choices=["features", "bert-base"], default=["features"])
    parser.add_argument("--ghosts", type=int, default=STEP, help="ghost batches of what is measured")
    parser.add_argument("--at-once", type=int, help="ghost batches per forward pass, ours; the preset's if not given")
    parser.add_argument("--compiled", action="store_true", help="of `time`: also the reference under torch.compile")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.table == "peak":
        peak(options.out, options)
        return
    about = {"threads": options.threads, "cores": os.cpu_count(), "torch": torch.__version__, "commit": git_commit()}
    out = Path(options.out)
    with out.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)] + list(about))
        writer.writeheader()
        for preset in options.presets:
            for text in options.texts:
                for row in TABLES[options.table](preset, text, options.ghosts, options):
                    writer.writerow({**asdict(row), "value": f"{row.value:.4g}", **about})
                    stream.flush()
                    print(row, flush=True)


if __name__ == "__main__":
    main()
