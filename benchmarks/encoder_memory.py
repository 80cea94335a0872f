"""Peak memory of a rank that trains a text encoder: ZeRO stages 0 to 3 with the optimizer on the device or the host,
gradient checkpointing and LoRA.

    python -m benchmarks.encoder_memory OUT.csv [--sizes "110 M" "350 M"] [--cases "stage 0" ...]

Two ranks on this machine's CPU, gloo over loopback, one thread each, the network of `mosi-aligned` and an encoder of
BERT-base's or BERT-large's shape with random weights. Memory is resident memory beyond that of a process that has
imported all, the most of either rank: while the training is built, and in two steps, of which the first makes Adam's
moments. glibc gives memory back at once (`MALLOC_*` below), so that what is freed does not count. Rows of a size and
case replace those of an earlier run in OUT.csv.
"""

import argparse
import csv
import json
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.encoder_memory_rank import SIZES
from benchmarks.tables import commit, processor, write_rows
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment

RANKS = 2
FREEING = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
SHORT, LONG = (2, 20), (8, 50)
"""Samples of a rank, and tokens of each: weights outweigh what is kept for backward, or the other way round."""
LORA = ("text.lora_rank=8", "text.lora_targets=all-linear")


@dataclass(frozen=True)
class Case:
    """What is trained, and on which batch."""

    overrides: tuple[str, ...]
    batch: tuple[int, int] = SHORT


CASES = {
    "stage 0": Case(("train.zero_stage=0",)),
    "stage 1": Case(("train.zero_stage=1",)),
    "stage 1, offload": Case(("train.zero_stage=1", "train.offload=cpu")),
    "stage 2": Case(("train.zero_stage=2",)),
    "stage 2, offload": Case(("train.zero_stage=2", "train.offload=cpu")),
    "stage 3": Case(("train.zero_stage=3",)),
    "stage 3, offload": Case(("train.zero_stage=3", "train.offload=cpu")),
    "LoRA, stage 0": Case(LORA),
    "LoRA, stage 3": Case((*LORA, "train.zero_stage=3")),
    "long, stage 0": Case((), LONG),
    "long, stage 0, checkpointing": Case(("text.gradient_checkpointing=true",), LONG),
    "long, LoRA": Case(LORA, LONG),
    "long, LoRA, checkpointing": Case((*LORA, "text.gradient_checkpointing=true"), LONG),
}


def measure(size: str, case: Case) -> dict[str, int]:
    """Bytes that the ranks of a training take at most, and its numbers of weights."""
    port = free_port()
    samples, length = case.batch
    arguments = ["--size", size, "--samples", str(samples), "--length", str(length), *case.overrides]
    ranks = []
    for rank in range(RANKS):
        own = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **FREEING}
        environment = {**os.environ, **rank_environment(rank=rank, ranks=RANKS, port=port), **own}
        command = [sys.executable, "-m", "benchmarks.encoder_memory_rank", *arguments]
        ranks.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit("a rank failed; what it says is above")
    found = [json.loads(next(line for line in output.splitlines() if line.startswith("{"))) for output in outputs]
    return {name: max(rank[name] for rank in found) for name in found[0]}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder_memory")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    where = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "commit": commit(),
        "command": shlex.join(["python", "-m", "benchmarks.encoder_memory", *sys.argv[1:]]),
    }
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    if options.out.exists():
        with options.out.open(newline="") as file:
            rows = {(row["encoder"], row["case"]): row for row in csv.DictReader(file)}
    for size in options.sizes:
        for name in options.cases:
            case = CASES[name]
            found = measure(size, case)
            row: dict[str, Any] = {
                "encoder": size,
                "case": name,
                "ranks": RANKS,
                "samples of a rank": case.batch[0],
                "tokens": case.batch[1],
                "parameters": found["parameters"],
                "trained": found["trained"],
                "peak of building, MB": round(found["building"] / 1e6),
                "peak of steps, MB": round(found["steps"] / 1e6),
                "bytes a parameter": f"{found['steps'] / found['parameters']:.1f}",
            }
            print(json.dumps(row), flush=True)
            rows[size, name] = row | where
            order = [(size, name) for size in SIZES for name in CASES]
            write_rows(options.out, [rows[key] for key in order if key in rows])


if __name__ == "__main__":
    main()
