"""What Ray costs a training, how long a lost rank takes, and the model of docs/scaling.md against two ranks.

    python -m benchmarks.cluster OUT.csv [overhead] [recovery] [throughput] [scaling] [--rounds 2]

overhead: a trial over the same training through the launcher; recovery: SIGKILL to a rank; throughput: trials per hour
on this machine against one `dmd train` after the other; scaling: step times at one and two ranks. Each takes two to
five minutes on two idle cores. The data are synthetic, trainings are small; sides alternate, medians of the rounds.
Ray's own processes get the priority of ours, not the lower one that is its default. Rows of a part replace those of an
earlier run in OUT.csv.
"""

import argparse
import csv
import json
import os
import platform
import secrets
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.cluster_runs import finish, lines, standing_cluster, start, step_seconds, train, tune, wait_for
from benchmarks.cluster_scaling import StepModel, line, spread
from benchmarks.tables import processor
from data_shards.sources.synthetic import SyntheticSource
from data_shards.writing.build import build
from dmd.training.logging.provenance import git_commit, versions
from launch.network.ports import free_port

SMALL = ["model.dim=20", "model.heads=4", "model.levels=2", "train.early_stop=1000"]
SCALED = ["model.dim=30", "model.heads=6", "model.levels=2"]
RATES = (1e-3, 1.5e-3, 2e-3, 3e-3)
Figures = dict[str, float]


def timed(begin: float, run: Path) -> tuple[float, float, float, float]:
    """Seconds of a command that has just ended: all, to its first step, from first to last, from there to its end."""
    end, steps = time.time(), lines(run)
    first, last = steps[0]["time"], steps[-1]["time"]
    return end - begin, first - begin, last - first, end - last


def overhead(shards: Path, folder: Path, rounds: int) -> Figures:
    """One training of 8 epochs three ways, on one thread: launcher, a trial on a standing cluster, one on its own."""
    settings = [*SMALL, "train.epochs=8"]
    seen: dict[str, list[tuple[float, ...]]] = {"launcher": [], "standing cluster": [], "own cluster": []}
    with standing_cluster(folder) as address:
        for number in range(rounds):
            begin, run = time.time(), folder / f"run{number}"
            finish(train(shards, run, "--ranks", 1, *settings, f"train.learning_rate={RATES[0]}", OMP_NUM_THREADS="1"))
            seen["launcher"].append((*timed(begin, run), statistics.median(step_seconds(run))))
            for side, options in (("standing cluster", ["--address", address]), ("own cluster", ["--cpus", 2])):
                begin, out = time.time(), folder / f"{side.replace(' ', '-')}{number}"
                finish(tune(shards, out, RATES[:1], *options, *settings))
                trial = out / "trials" / "0000"
                seen[side].append((*timed(begin, trial), statistics.median(step_seconds(trial))))
    names = (
        "seconds",
        "seconds to the first step",
        "seconds of the steps",
        "seconds after the last step",
        "step seconds",
    )
    medians = {
        side: dict(zip(names, map(statistics.median, zip(*values, strict=True)), strict=True))
        for side, values in seen.items()
    }
    result = {f"{side}: {name}": value for side, values in medians.items() for name, value in values.items()}
    for side in ("standing cluster", "own cluster"):
        for place, name in ((0, "wall time"), (4, "step time")):
            ratios = [ours[place] / base[place] for ours, base in zip(seen[side], seen["launcher"], strict=True)]
            result[f"{side} over launcher: {name}"] = statistics.median(ratios)
    return result


def recovery(shards: Path, folder: Path, rounds: int) -> Figures:
    """A trial of one rank is killed `rounds` times, two epochs apart."""
    driver = tune(shards, folder / "out", RATES[:1], "--cpus", 2, "--max-failures", 9, *SMALL, "train.epochs=5000")
    trial = folder / "out" / "trials" / "0000"
    seconds, lost = [], []
    try:
        for _ in range(rounds):
            there = len(lines(trial, "valid"))
            wait_for(lambda known=there: len(lines(trial, "valid")) >= known + 2, "two epochs")  # type: ignore[misc]
            wait_for(lambda: lines(trial)[-1]["step"] > lines(trial, "valid")[-1]["step"] + 2, "the middle of an epoch")
            started = psutil.Process(driver.pid).children(recursive=True)
            rank = next(process for process in started if "RayTrainWorker" in " ".join(process.cmdline()))
            rank.kill()
            rank.wait()
            killed, last = time.time(), lines(trial)[-1]["step"]
            wait_for(lambda since=killed: lines(trial) and lines(trial)[-1]["time"] > since, "a step")  # type: ignore[misc]
            again = next(entry for entry in lines(trial) if entry["time"] > killed)
            seconds.append(again["time"] - killed)
            lost.append(last + 1 - again["step"])
    finally:
        driver.kill()
        driver.wait()
    return {
        "kill to the first step made again: seconds": statistics.median(seconds),
        "longest: seconds": max(seconds),
        "steps made again": statistics.median(lost),
        "kills": len(seconds),
    }


def throughput(shards: Path, folder: Path, rounds: int) -> Figures:
    """The same four trainings of 10 epochs: two at a time through Ray, and one after the other, on all cores each."""
    settings = [*SMALL, "train.epochs=10"]
    sequential, parallel = [], []
    for number in range(max(1, rounds // 2)):
        begin = time.time()
        for rate in RATES:
            finish(train(shards, folder / f"{number}-{rate}", "--ranks", 1, *settings, f"train.learning_rate={rate}"))
        sequential.append(time.time() - begin)
        begin = time.time()
        finish(tune(shards, folder / f"out{number}", RATES, "--cpus", 2, *settings))
        parallel.append(time.time() - begin)
    return {
        "dmd train one by one: trials per hour": 3600 * len(RATES) / statistics.median(sequential),
        "dmd tune: trials per hour": 3600 * len(RATES) / statistics.median(parallel),
        "dmd tune over one by one": statistics.median(a / b for a, b in zip(sequential, parallel, strict=True)),
    }


def scaling(shards: Path, folder: Path, rounds: int) -> Figures:
    """Fit the model to one rank at 2 and 8 ghost batches, hold it against 4 at one rank, and 4 and 8 at two."""
    seen: dict[str, list[float]] = {}

    def begin(ghost_batches: int, ranks: int, name: str) -> "subprocess.Popen[bytes]":
        return train(
            shards,
            folder / name,
            "--ranks",
            ranks,
            *SCALED,
            "train.max_steps=30",
            f"train.ghost_batches_per_step={ghost_batches}",
            "train.ghost_batches_per_forward=2",
            OMP_NUM_THREADS="1",
        )

    for number in range(rounds):
        for ghost_batches, ranks in ((2, 1), (8, 1), (4, 1), (4, 2), (8, 2)):
            run = f"{number}-{ghost_batches}-{ranks}"
            finish(begin(ghost_batches, ranks, run))
            seen.setdefault(f"{ghost_batches}/{ranks}", []).extend(step_seconds(folder / run))
        beside = [begin(4, 1, f"{number}-{side}") for side in ("left", "right")]
        for process, side in zip(beside, ("left", "right"), strict=True):
            finish(process)
            seen.setdefault("beside", []).extend(step_seconds(folder / f"{number}-{side}"))
    about = json.loads((folder / "0-4-1" / "run.json").read_text())["info"]
    gradient, port = 4 * about["parameters"], free_port()
    pair = [start("benchmarks.cluster_scaling", rank, 2, port, gradient, OMP_NUM_THREADS="1") for rank in (0, 1)]
    outputs = [finish(process) for process in pair]
    small, large = json.loads(outputs[0].strip().splitlines()[-1]).values()
    median = {name: statistics.median(seconds) for name, seconds in seen.items()}
    fixed, slope = line({2: median["2/1"], 8: median["8/1"]})
    model = StepModel(
        fixed=fixed,
        per_ghost_batch=slope,
        gradient_bytes=gradient,
        jitter=spread(seen["4/1"]),
        bandwidth=gradient / (large - small),
        latency=small / 2,
    )
    crowding = median["beside"] / median["4/1"]
    result = {
        "fitted: fixed seconds": fixed,
        "fitted: seconds per ghost batch": slope,
        "jitter": model.jitter,
        "gradient bytes": model.gradient_bytes,
        "gloo: bytes per second": model.bandwidth,
        "gloo: seconds per hop": model.latency,
        "crowding: two trainings at once over one alone": crowding,
    }
    for ghost_batches, ranks in ((4, 1), (4, 2), (8, 2)):
        name, here = f"{ghost_batches} ghost batches, {ranks} rank{'s' * (ranks > 1)}", crowding if ranks > 1 else 1.0
        predicted, found = model.seconds(ranks, ghost_batches, here), median[f"{ghost_batches}/{ranks}"]
        result |= {
            f"{name}: model seconds": predicted,
            f"{name}: measured seconds": found,
            f"{name}: measured over model": found / predicted,
        }
    return result


PARTS = {"overhead": overhead, "recovery": recovery, "throughput": throughput, "scaling": scaling}


def write_rows(path: Path, part: str, figures: Figures) -> None:
    """Put a part's figures into the table, in place of what it had."""
    where = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "commit": git_commit(),
        "command": shlex.join(["python", "-m", "benchmarks.cluster", *sys.argv[1:]]),
        "versions": json.dumps(versions(), sort_keys=True),
    }
    rows: list[dict[str, Any]] = []
    if path.exists():
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["part"] != part]
    rows += [{"part": part, "figure": name, "value": f"{value:.4g}", **where} for name, value in figures.items()]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Measure parts, each written when it is done."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=summary)
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    os.environ |= {
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for part in options.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="b-") as name:
            folder = Path(name)
            samples = 5000 if part == "scaling" else 1600
            build(SyntheticSource(samples=samples, steps=20, text_dim=100), folder / "shards", samples_per_shard=512)
            figures = PARTS[part](folder / "shards", folder, options.rounds)
        write_rows(options.out, part, figures)
        print(*(f"{part}: {name} {value:.4g}" for name, value in figures.items()), sep="\n", flush=True)


if __name__ == "__main__":
    main()
