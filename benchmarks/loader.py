"""Reading, starting, resuming and writing: shards against a WebDataset pipeline and against all data in memory.

    python -m benchmarks.loader OUT.csv [--folder DIR] [--samples 2048] [--rounds 7] [--largest 100000000]
    python -m benchmarks.loader OUT.csv --parts reading memory
    python -m benchmarks.loader OUT.csv --busy    on a busy machine: reading alone, without workers, in CPU seconds

Sides of a comparison alternate in one process, so that a busy machine slows all of them; medians of the rounds, after
a first round that nobody counts, and the median of the rounds' ratios. Memory is measured in a process of its own.
The largest index takes some gigabytes in the folder and minutes to write. OUT.csv is written anew.
"""

import argparse
import csv
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from pathlib import Path

import torch

from benchmarks.loader_scale import first_batch, locality, scale_facts, write_index
from benchmarks.loader_sides import (
    SHAPES,
    Noise,
    drop_from_cache,
    in_memory,
    ours,
    peak_memory,
    pipeline,
    prepare,
    stream,
    webdataset,
    write_ours,
    write_webdataset,
)
from benchmarks.tables import processor
from data_shards.format.index_file import INDEX_NAME
from dmd.training.logging.provenance import git_commit, versions

PARTS = ("reading", "memory", "starting", "resuming", "writing")
GOALS: dict[str, object] = {"WebDataset": 8.0, "in memory": 1.2}


@dataclass(frozen=True)
class Row:
    """One figure; `ours_over_it` is how many times as fast ours was."""

    part: str
    case: str
    side: str
    value: float
    unit: str
    ours_over_it: object = ""
    goal: object = ""


def alternate(
    sides: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each side in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            begin = clock()
            run()
            if number:
                seconds[name].append(clock() - begin)
    return seconds


def ratio(numerator: list[float], denominator: list[float], digits: int = 2) -> float:
    """The median over the rounds of one side's time over another's."""
    return round(statistics.median(a / b for a, b in zip(numerator, denominator, strict=True)), digits)


def reading(folder: Path, samples: int, rounds: int) -> list[Row]:
    """Samples per second of the ways to read, in the three shapes, without and with two workers (a stream has one)."""
    rows = []
    for shape in SHAPES:
        root, data = prepare(folder, shape, samples), Noise(shape, samples).mmsa()
        for workers in (0, 2):
            case = f"{shape}, {workers} workers"
            streams = {"stream": stream(root, workers), "data_shards.pipeline": pipeline(root, workers)}
            plain = {"WebDataset": webdataset(root, workers), "in memory": in_memory(data, workers)}
            seconds = alternate({"ours": ours(root, workers), **streams, **plain}, rounds)
            for side, times in seconds.items():
                value = round(samples / statistics.median(times))
                over = ratio(times, seconds["ours"]) if side != "ours" else ""
                rows.append(Row("reading", case, side, value, "samples/s", over, GOALS.get(side, "")))
        drop_from_cache(root)  # the next epoch brings the tars back in the order of an epoch, in small pieces
        seconds = alternate({"ours": ours(root, 0), "in memory": in_memory(data, 0)}, rounds)
        case = f"{shape}, 0 workers, page cache refilled by training"
        value = round(samples / statistics.median(seconds["ours"]))
        rows.append(Row("reading", case, "ours", value, "samples/s", "", ""))
        over = ratio(seconds["in memory"], seconds["ours"])
        value = round(samples / statistics.median(seconds["in memory"]))
        rows.append(Row("reading", case, "in memory", value, "samples/s", over, ""))
    return rows


def reading_cpu(folder: Path, samples: int, rounds: int) -> list[Row]:
    """Samples per CPU second of this process, whose threads read: ours and WebDataset's pipelines."""
    rows = []
    for shape in SHAPES:
        root = prepare(folder, shape, samples)
        streams = {"stream": stream(root, 0), "data_shards.pipeline": pipeline(root, 0)}
        seconds = alternate(
            {"ours": ours(root, 0), **streams, "WebDataset": webdataset(root, 0)}, rounds, time.process_time
        )
        for side, times in seconds.items():
            value = round(samples / statistics.median(times))
            over = ratio(times, seconds["ours"]) if side != "ours" else ""
            rows.append(Row("reading", f"{shape}, 0 workers", side, value, "samples per CPU second", over))
    return rows


def memory(samples: int, arguments: list[str]) -> list[Row]:
    """Peak memory of two epochs of the largest shape, at one size and at four times that size."""
    rows = []
    for side in ("ours", "stream", "WebDataset", "in memory"):
        for count in (samples // 4, samples):
            value = math.nan
            while math.isnan(value):
                value = float(_again([*arguments, "--memory", side, "--samples", str(count)]))
            case = f"MOSEI unaligned, {count} samples"
            rows.append(Row("peak memory", case, side, round(value), "MiB over imports"))
    return rows


def starting(folder: Path, largest: int, arguments: list[str]) -> list[Row]:
    """Time to the first batch's rows, and memory, for indexes of growing size; the order alone beyond."""
    rows = []
    for count in (10**4, 10**6, 10**8, 10**9):
        root = folder / f"index-{count}"
        if count <= largest and not (root / INDEX_NAME).exists():
            write_index(root, count)
        facts = json.loads(_again([*arguments, "--scale", str(count)]))
        case = f"{count} samples" + ("" if (root / INDEX_NAME).exists() else ", order and plan alone")
        rows += [Row("starting", case, what, value, unit) for what, (value, unit) in facts.items()]
    for window, ranks, shards in locality():
        case = f"10^8 samples in 10^4 shards, window {window}, {ranks} ranks"
        rows.append(Row("locality", case, "shards that a rank touches in 1,000 steps", shards, "shards"))
    return rows


def resuming(folder: Path, samples: int, rounds: int) -> list[Row]:
    """Time to the first batch of step k of an epoch over time to that of step 0; both alternate."""
    root = prepare(folder, "MOSI aligned", samples)
    steps = -(-samples // 160)
    names = {f"step {k} of {steps}": k for k in (0, 1, steps // 4, steps // 2, steps - 2)}
    seconds = alternate({name: partial(first_batch, root, k) for name, k in names.items()}, 4 * rounds)
    rows = []
    for name, times in seconds.items():
        value = round(1000 * statistics.median(times), 2)
        over = ratio(times, seconds[f"step 0 of {steps}"], 3)
        rows.append(Row("resuming", name, "time over step 0", value, "ms to the first batch", over, "at most 1.1"))
    return rows


def writing(samples: int, rounds: int) -> list[Row]:
    """MiB per second of writing the same samples; ours also hashes, checks and flushes them to the disk."""
    rows = []
    for shape in SHAPES:
        source = Noise(shape, samples, held=True)
        sides = {
            "ours, 1 process": partial(write_ours, source, 1),
            "ours, 2 processes": partial(write_ours, source, 2),
            "wds.ShardWriter": partial(write_webdataset, source, False),
            "wds.ShardWriter and fsync": partial(write_webdataset, source, True),
        }
        seconds = alternate(sides, rounds)
        for side, times in seconds.items():
            over = ratio(times, seconds["ours, 1 process"]) if "wds" in side else ""
            value = round(source.megabytes / statistics.median(times))
            rows.append(Row("writing", shape, side, value, "MiB/s", over))
    return rows


def _again(arguments: list[str]) -> str:
    """What this script prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader", os.devnull, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def write_table(rows: list[Row], path: Path) -> None:
    """One line per figure, each with where it was measured."""
    where = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "commit": git_commit(),
        "versions": json.dumps(versions(), sort_keys=True),
    }
    columns = [*(field.name for field in fields(Row)), *where]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({**asdict(row), **where} for row in rows)


def main() -> None:
    """Measure everything and write the table; or print one figure for the process that asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "loader-benchmark")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--largest", type=int, default=10**8)
    parser.add_argument("--busy", action="store_true", help="the machine has other work: CPU seconds, reading alone")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all of them")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.memory:
        print(peak_memory(options.memory, options.folder, "MOSEI unaligned", options.samples))
        return
    if options.scale:
        print(json.dumps(scale_facts(options.folder / f"index-{options.scale}", options.scale)))
        return
    arguments = ["--folder", str(options.folder)]
    rows: list[Row] = []
    by_wall = {
        "reading": partial(reading, options.folder, options.samples, options.rounds),
        "memory": partial(memory, options.samples, arguments),
        "starting": partial(starting, options.folder, options.largest, arguments),
        "resuming": partial(resuming, options.folder, options.samples, options.rounds),
        "writing": partial(writing, options.samples // 4, options.rounds),
    }
    chosen = [by_wall[name] for name in options.parts or by_wall]
    if options.busy:
        chosen = [partial(reading_cpu, options.folder, options.samples, options.rounds)]
    for part in chosen:
        found = part()
        rows += found
        for row in found:
            print(*astuple(row), sep=" | ", flush=True)
        write_table(rows, options.out)


if __name__ == "__main__":
    main()
