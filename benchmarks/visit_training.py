"""Trainings of a visit: `launch/train.py` on the DeepSpeed engine, killed and resumed, with and without CUDA graphs.

    python -m benchmarks.visit_training --scratch SCRATCH --results RESULTS

First, one after the other and undisturbed, 30 steps of mosi-aligned on synthetic shards: graph off, graph auto. Then,
at once: each again, killed by SIGKILL in the middle and continued by the same command; the same pair under
`train.deterministic`; one run through `dmd train`. Compared are the weights of the last checkpoint, bit by bit, and
every number of the log but times. `trainings.csv` has a row for each run, `resumed.csv` one for each comparison.
`SCRATCH/shards` and `SCRATCH/off` stay for `benchmarks.visit_commands`.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.tables import Table, commit
from dmd.checkpoint.format import MODEL, newest_whole
from dmd.cli import main as dmd
from dmd.config import TrainConfig
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment

ROOT = Path(__file__).resolve().parents[1]
TINY = ("model.dim=8", "model.heads=2", "model.levels=1", "train.ghost_batch_size=4", "train.ghost_batches_per_step=2")
SAMPLES = 1600
LIMIT = 100
"""Seconds for one process."""
NOT_COMPARED = ("time", "per_second", "seconds", "memory")
"""Parts of names in the log that differ from run to run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training: its directory's name, what is set, and how it is started."""

    name: str
    overrides: tuple[str, ...]
    killed: bool = False
    launcher: bool = False


class Trainings:
    """Starts runs and looks at what they left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.scratch = options.scratch
        self.results = options.results
        self.table = Table(self.results / "trainings.csv")
        self.compared = Table(self.results / "resumed.csv")
        self.comparisons: list[str] = []
        self.failed = False
        own = TINY if options.tiny else ()
        endless = ("train.epochs=1000", "train.early_stop=1000")
        self.common = (*own, f"train.max_steps={options.steps}", "train.save_every=5", *endless)

    def run(self, run: Run) -> None:
        """Start a run; one that is to be killed a second time too. Adds its row."""
        began = time.perf_counter()
        codes = [self._start(run, fault=f"kill:backward@{self.options.steps // 2 - 1}")] if run.killed else []
        codes.append(self._start(run))
        row = {
            "run": run.name,
            "exit_codes": " ".join(map(str, codes)),
            "seconds": round(time.perf_counter() - began, 1),
            "step_ms": "",
            "steps": "",
            "last_loss": "",
            "kernels": "",
            "precision": "",
            "cuda_graph": "",
            "ghost_batches_per_forward": "",
            "data_workers": "",
            "torch": torch.__version__,
            "commit": commit(),
        }
        lines = read_log(self.scratch / run.name)
        trained = [line for line in lines if line["kind"] == "train"]
        if trained:
            row |= {
                "steps": trained[-1]["step"],
                "last_loss": trained[-1].get("train/total", ""),
                "step_ms": step_milliseconds(trained),
            }
        document = self.scratch / run.name / "run.json"
        if document.exists():
            info = json.loads(document.read_text())["info"]
            row |= {name: value for name, value in info.items() if name in row}
        self.table.add(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        self.failed |= codes[-1] != 0 or (run.killed and codes[0] == 0)

    def _start(self, run: Run, fault: str = "") -> int:
        """One process; its exit code. 124: cut off."""
        arguments = [
            "--preset",
            "mosi-aligned",
            "--data",
            str(self.scratch / "shards"),
            "--run",
            str(self.scratch / run.name),
            *self.common,
            *run.overrides,
        ]
        environment = {**os.environ, "DMD_FAULT": fault}
        if run.launcher:
            command = [sys.executable, "-m", "dmd.cli", "train", "--ranks", "1", *arguments]
        else:
            command = [sys.executable, str(ROOT / "launch" / "train.py"), *arguments]
            environment |= rank_environment(rank=0, ranks=1, port=free_port())
        with (self.results / f"training-{run.name}.txt").open("a") as log:
            try:
                done = subprocess.run(command, env=environment, cwd=ROOT, stdout=log, stderr=log, timeout=LIMIT)
            except subprocess.TimeoutExpired:
                return 124
        return done.returncode

    def compare(self, one: str, other: str, *, required: bool) -> None:
        """Weights and log of two runs, bit by bit; `required`: a difference is a failure."""
        weights = [last_weights(self.scratch / name) for name in (one, other)]
        row = {"one": one, "other": other, "weights": "missing", "largest_difference": "", "log": "", "first_step": ""}
        if all(weights):
            differing = [name for name, value in weights[0].items() if not value.equal(weights[1][name])]
            largest = max(float((value - weights[1][name]).abs().max()) for name, value in weights[0].items())
            row |= {
                "weights": f"{len(differing)} of {len(weights[0])} tensors differ" if differing else "identical",
                "largest_difference": f"{largest:.2e}",
            }
        step = first_difference(*(read_log(self.scratch / name) for name in (one, other)))
        row |= {"log": "identical" if step is None else "differs", "first_step": "" if step is None else step}
        self.compared.add(row)
        same = row["weights"] == row["log"] == "identical"
        self.failed |= required and not same
        difference = "" if same else f" (weights {row['weights']}, log {row['log']})"
        self.comparisons.append(f"{one} = {other}: {'identical' if same else 'DIFFERENT'}{difference}")
        print(self.comparisons[-1], flush=True)


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def step_milliseconds(trained: list[dict[str, Any]]) -> float | str:
    """Median time from one step's line to the next, of the last two thirds."""
    gaps = [b["time"] - a["time"] for a, b in itertools.pairwise(trained) if b["step"] == a["step"] + 1]
    kept = gaps[len(gaps) // 3 :]
    return round(1e3 * statistics.median(kept), 2) if kept else ""


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint; none if there is none."""
    path, _ = newest_whole(run / "checkpoints")
    return {} if path is None else load_file(path / MODEL)


def first_difference(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> int | None:
    """The step of the first line that differs in anything but times; None: no line does."""

    def kept(line: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in line.items() if not any(part in name for part in NOT_COMPARED)}

    for a, b in zip(one, other, strict=False):
        if kept(a) != kept(b):
            return int(a["step"])
    return None if len(one) == len(other) and one else min(len(one), len(other))


def main() -> int:
    """Run and compare; 1: a run failed, or differs where bitwise identical ones are promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--only", choices=["graph", "times"], help="captured trainings; undisturbed ones")
    parser.add_argument("--at-once", action="store_true", help="all beside each other: no times, but sooner done")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    for folder in (options.scratch, options.results):
        folder.mkdir(parents=True, exist_ok=True)
    shards = str(options.scratch / "shards")
    if dmd(["shard", "--synthetic", shards, "--samples", str(SAMPLES // 8 if options.tiny else SAMPLES)]):
        return 1
    trainings = Trainings(options)
    off, graph = ("train.cuda_graph='off'",), ("train.cuda_graph=auto",)  # a bare off is YAML's false
    alone = [Run(name="off", overrides=off), Run(name="graph", overrides=graph)]
    together = [
        Run(name="off-resumed", overrides=off, killed=True),
        Run(name="graph-resumed", overrides=graph, killed=True),
        Run(name="launcher", overrides=off, launcher=True),
    ]
    pairs = [("off", "off-resumed"), ("graph", "graph-resumed"), ("off", "launcher"), ("off", "graph")]
    promised: list[tuple[str, str]] = []
    if "deterministic" in {field.name for field in fields(TrainConfig)}:
        same = ("train.deterministic=true", *off)
        together += [Run(name="exact", overrides=same), Run(name="exact-resumed", overrides=same, killed=True)]
        promised = [("exact", "exact-resumed")]
    if options.device == "cpu":
        promised += pairs
    if options.only == "times":
        together, pairs, promised = [], [], []
    if options.only == "graph":
        alone, together, promised = [run for run in alone if run.name == "graph"], [together[1]], []
        pairs = [("graph", "graph-resumed")]
    if options.at_once:
        alone, together = [], alone + together
    for run in alone:
        trainings.run(run)
    with ThreadPoolExecutor(2 if options.tiny else max(1, len(together))) as pool:
        list(pool.map(trainings.run, together))
    for one, other in dict.fromkeys([*pairs, *promised]):
        trainings.compare(one, other, required=(one, other) in promised)
    times = {
        name: step_milliseconds([line for line in read_log(options.scratch / name) if line["kind"] == "train"])
        for name in (run.name for run in alone)
    }
    print("; ".join([", ".join(f"{name} {value} ms a step" for name, value in times.items()), *trainings.comparisons]))
    return int(trainings.failed)


if __name__ == "__main__":
    raise SystemExit(main())
