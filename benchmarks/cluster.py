"""What Ray costs a training, how long a lost rank takes, and a model of step time over ranks (docs/scaling.md).

    python benchmarks/cluster.py overhead SHARDS     a trial through Ray over the same training through the launcher
    python benchmarks/cluster.py recovery SHARDS     SIGKILL to a rank: seconds to the first step made again
    python benchmarks/cluster.py throughput SHARDS   trials per hour on this machine, against one `dmd train` by one
    python benchmarks/cluster.py scaling SHARDS      the model, from step times measured here at 1 and 2 ranks

Each prints one JSON object. They start a local Ray cluster and stop it; run them on an idle machine.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

TINY = ["model.dim=8", "model.heads=2", "model.levels=1", "train.ghost_batches_per_step=2"]
RATES = (1e-3, 2e-3, 3e-3, 4e-3)
PATIENCE = 1200


def dmd(*arguments: object, wait: bool = True) -> "subprocess.Popen[bytes]":
    """A `dmd` command; its output goes nowhere."""
    command = [sys.executable, "-m", "dmd.cli", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if wait:
        _, errors = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{errors.decode()[-2000:]}")
    return process


def log_lines(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The whole lines of a kind in a run's log."""
    path = run / "metrics.jsonl"
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [json.loads(text) for text in texts if text.endswith("\n")]
    return [line for line in lines if line["kind"] == kind]


def step_seconds(run: Path) -> list[float]:
    """Seconds between one step and the next inside an epoch, without the first."""
    ends = {line["step"] for line in log_lines(run, "valid")}
    times = [(line["step"], line["time"]) for line in log_lines(run)]
    return [after - before for (step, before), (_, after) in pairwise(times[1:]) if step not in ends]


def tune(shards: Path, out: Path, *options: object, rates: tuple[float, ...] = RATES, wait: bool = True) -> Any:
    """`dmd tune` over learning rates, on a local cluster."""
    out.mkdir(parents=True)
    space = out.parent / f"{out.name}.yaml"
    space.write_text(f"train.learning_rate: {{choice: {list(rates)}}}\n")
    fixed = ("--search", "grid", "--scheduler", "none", "--space", space, "--data", shards, "--out", out)
    return dmd("tune", *fixed, *options, wait=wait)


def overhead(shards: Path, folder: Path, epochs: int) -> dict[str, float]:
    """Wall time of one trial through Ray over the launcher's, and of the parts of a trial."""
    settings = [*TINY, f"train.epochs={epochs}"]
    begin = time.time()
    dmd("train", "--data", shards, "--run", folder / "run", "--ranks", "1", *settings, "train.learning_rate=1e-3")
    launcher = time.time() - begin
    launcher_first = log_lines(folder / "run")[0]["time"] - begin
    begin = time.time()
    tune(shards, folder / "out", *settings, rates=RATES[:1])
    whole = time.time() - begin
    trial = folder / "out" / "trials" / "0000"
    first = log_lines(trial)[0]["time"]
    return {
        "epochs": epochs, "launcher_seconds": launcher, "ray_seconds": whole, "ratio": whole / launcher,
        "launcher_submit_to_first_step_seconds": launcher_first, "ray_submit_to_first_step_seconds": first - begin,
        "of_which_to_the_cluster_seconds": (folder / "out" / "experiment.json").stat().st_mtime - begin,
        "launcher_step_seconds": statistics.median(step_seconds(folder / "run")),
        "ray_step_seconds": statistics.median(step_seconds(trial)),
    }  # fmt: skip


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Poll until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.05)


def recovery(shards: Path, folder: Path) -> dict[str, float]:
    """A rank is killed in mid-trial."""
    settings = [*TINY, "train.epochs=400", "train.early_stop=1000"]
    driver = tune(shards, folder / "out", *settings, rates=RATES[:1], wait=False)
    trial = folder / "out" / "trials" / "0000"
    try:
        wait_for(lambda: len(log_lines(trial, "valid")) >= 3, "the first epochs")
        started = psutil.Process(driver.pid).children(recursive=True)
        rank = next(process for process in started if "RayTrainWorker" in " ".join(process.cmdline()))
        rank.kill()
        killed = time.time()
        last = log_lines(trial)[-1]["step"]
        wait_for(lambda: [line for line in log_lines(trial) if line["time"] > killed + 1], "the trial to go on")
        again = next(line for line in log_lines(trial) if line["time"] > killed + 1)
    finally:
        driver.kill()
        driver.wait()
    return {
        "kill_to_first_resumed_step_seconds": again["time"] - killed, "step_at_kill": last,
        "first_resumed_step": again["step"],
    }  # fmt: skip


def throughput(shards: Path, folder: Path, epochs: int) -> dict[str, float]:
    """Trials per hour, two at a time through Ray and one after the other through the launcher."""
    settings = [*TINY, f"train.epochs={epochs}"]
    begin = time.time()
    for number, rate in enumerate(RATES):
        dmd("train", "--data", shards, "--run", folder / str(number), *settings, f"train.learning_rate={rate}")
    sequential = time.time() - begin
    begin = time.time()
    tune(shards, folder / "out", *settings)
    parallel = time.time() - begin
    return {
        "trials": len(RATES), "epochs": epochs, "sequential_trials_per_hour": 3600 * len(RATES) / sequential,
        "ray_trials_per_hour": 3600 * len(RATES) / parallel, "ratio": sequential / parallel,
    }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StepModel:
    """Step time of R ranks: compute of the slowest one, then a ring all-reduce of the gradient, nothing overlapped.

    compute(R) = fixed + ceil(G / R) * per_ghost_batch, times the slowest of R draws with relative deviation `jitter`
    (expected maximum of R normal draws: about jitter * sqrt(2 ln R)); reduce(R) = 2 (R - 1) / R * bytes / bandwidth
    + 2 ceil(log2 R) * latency.
    """

    fixed: float
    """Seconds of a step that no rank can share."""
    per_ghost_batch: float
    gradient_bytes: int
    jitter: float
    bandwidth: float
    """Bytes per second of one link."""
    latency: float

    def seconds(self, ranks: int, ghost_batches: int) -> float:
        """Seconds of one step of so many ghost batches."""
        compute = self.fixed + math.ceil(ghost_batches / ranks) * self.per_ghost_batch
        straggler = 1 + self.jitter * math.sqrt(2 * math.log(ranks))
        reduce = 2 * (ranks - 1) / ranks * self.gradient_bytes / self.bandwidth
        return compute * straggler + reduce + 2 * math.ceil(math.log2(ranks)) * self.latency


def measured(shards: Path, folder: Path, ghost_batches: int, ranks: int) -> list[float]:
    """Step times of the small preset here, one core per rank."""
    run = folder / f"{ghost_batches}-{ranks}"
    dmd(
        "train", "--preset", "demo", "--data", shards, "--run", run, "--ranks", ranks, "train.epochs=1",
        f"train.ghost_batches_per_step={ghost_batches}", "train.ghost_batches_per_forward=2", "train.max_steps=10",
    )  # fmt: skip
    return step_seconds(run)


def scaling(shards: Path, folder: Path) -> dict[str, Any]:
    """Fit the model at 1 rank, hold it against 2 ranks, print what it says for more."""
    os.environ["OMP_NUM_THREADS"] = "1"
    two, four = (measured(shards, folder, ghost_batches, 1) for ghost_batches in (2, 4))
    both = measured(shards, folder, 4, 2)
    slope = (statistics.median(four) - statistics.median(two)) / 2
    about = json.loads((folder / "4-1" / "run.json").read_text())["info"]
    gradient_bytes = 4 * about["parameters"]
    fixed = max(0.0, statistics.median(four) - 4 * slope)
    jitter = statistics.pstdev(four) / statistics.fmean(four)
    here = StepModel(
        fixed=fixed, per_ghost_batch=slope, gradient_bytes=gradient_bytes, jitter=jitter, bandwidth=1e9, latency=1e-4
    )
    result: dict[str, Any] = {
        "gradient_bytes": gradient_bytes, "fixed_seconds": fixed, "per_ghost_batch_seconds": slope, "jitter": jitter,
        "measured_1_rank": statistics.median(four), "model_1_rank": here.seconds(1, 4),
        "measured_2_ranks": statistics.median(both), "model_2_ranks": here.seconds(2, 4),
    }  # fmt: skip
    return {**result, **predictions(gradient_bytes)}


def predictions(gradient_bytes: int) -> dict[str, Any]:
    """The model on one GPU per rank; the assumptions are those of docs/scaling.md."""
    networks = {"100 Gbit/s": (12.5e9, 2e-5), "10 Gbit/s": (1.25e9, 5e-5)}
    table: dict[str, Any] = {}
    for name, (bandwidth, latency) in networks.items():
        model = StepModel(
            fixed=0.02, per_ghost_batch=0.004, gradient_bytes=gradient_bytes, jitter=0.05, bandwidth=bandwidth,
            latency=latency,
        )  # fmt: skip
        for ranks in (1, 2, 8, 64, 512):
            ten = model.seconds(ranks, 10) if ranks <= 10 else None
            grown = model.seconds(ranks, 10 * ranks)
            table[f"{name}, {ranks} ranks"] = {
                "seconds_10_ghost_batches": ten, "seconds_10_per_rank": grown,
                "efficiency_10_per_rank": model.seconds(1, 10) / grown,
            }  # fmt: skip
    return table


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=("overhead", "recovery", "throughput", "scaling"))
    parser.add_argument("shards", type=Path)
    parser.add_argument("--epochs", type=int, default=20, help="of each training (default: 20)")
    options = parser.parse_args()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with tempfile.TemporaryDirectory(prefix="dmd-cluster-") as name:
        folder, shards = Path(name), options.shards.absolute()
        if options.what in ("overhead", "throughput"):
            result = (overhead if options.what == "overhead" else throughput)(shards, folder, options.epochs)
        else:
            result = (recovery if options.what == "recovery" else scaling)(shards, folder)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
