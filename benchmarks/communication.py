"""Step time of two hosts over a slow link: DeepSpeed's reduction against ours, in one bucket and in several, in float32
and in bfloat16, and the model of docs/scaling.md beside it.

    python -m benchmarks.communication OUT.csv [--megabits 1000 100] [--rounds 5 2] [--samples 4]

Two network namespaces of this machine, one rank and one thread each, joined by a link that `tc` limits to so many
Mbit/s in each direction (root, iproute2). A text encoder of BERT-base's shape with random weights and the network of
`mosi-aligned`, a ghost batch per rank. The ranks make a step in each reduction in turn, round after round; ratios are
medians over the rounds. Rows of a link replace those of an earlier run in OUT.csv.
"""

import argparse
import csv
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cluster_scaling import StepModel
from benchmarks.communication_rank import REDUCTIONS
from benchmarks.tables import commit, processor, write_rows
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment
from tests.support.hosts import hosts

BASE, SEVERAL = "fp32, one bucket", "fp32, 25 MB"
ON_THE_WIRE = 1448 / 1514
"""Share of a link that is payload: TCP's segment of an Ethernet frame."""
BYTES = {"fp32": 4, "bf16": 2}
Step = dict[str, Any]


def measure(megabits: list[int], rounds: list[int], samples: int) -> tuple[list[Step], dict[str, Any]]:
    """Rank 0's steps, and the sizes of the gradient and its buckets."""
    port = free_port()
    arguments = ["--megabits", *map(str, megabits), "--rounds", *map(str, rounds), "--samples", str(samples)]
    with hosts(2) as pair:
        ranks = []
        for rank, host in enumerate(pair):
            environment = {
                **os.environ,
                **rank_environment(
                    rank=rank, ranks=2, local_rank=0, local_ranks=1, hosts=2, address=pair[0].address, port=port
                ),
                "GLOO_SOCKET_IFNAME": host.interface,
                "OMP_NUM_THREADS": "1",
                "DS_ACCELERATOR": "cpu",
            }
            command = [*host.inside, sys.executable, "-m", "benchmarks.communication_rank", *arguments]
            output = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
            ranks.append(subprocess.Popen(command, env=environment, stdout=output, text=True))
        steps: list[Step] = []
        sizes: dict[str, Any] = {}
        assert ranks[0].stdout is not None
        for line in ranks[0].stdout:
            if not line.startswith("{"):
                continue
            found = json.loads(line)
            if "buckets" in found:
                sizes = found
            else:
                steps.append(found)
            print(line, end="", flush=True)
        if any(rank.wait() for rank in ranks):
            raise SystemExit("a rank failed; what it says is above")
    return steps, sizes


def medians(steps: list[Step]) -> dict[str, float]:
    """Of every number of some steps."""
    names = [name for name, value in steps[0].items() if isinstance(value, float)]
    return {name: statistics.median(step[name] for step in steps) for name in names}


def predicted(name: str, base: dict[str, float], hides: float, sizes: dict[str, Any], megabits: int) -> float:
    """Seconds of a step as `StepModel` has it from one without overlap and the link's rate.

    Args:
        base: medians of `BASE`, of which everything counts as compute but the time it waited for its gradient.
        hides: seconds of backward that are left when the first bucket of several starts.
    """
    how = REDUCTIONS[name]
    precision, _ = how or ("fp32", 0)
    buckets = sizes["buckets"][name] if how else [sizes["parameters"]]
    model = StepModel(
        fixed=base["seconds"] - base["waiting"],
        per_ghost_batch=0.0,
        gradient_bytes=BYTES[precision] * sizes["parameters"],
        jitter=0.0,
        bandwidth=megabits * 1e6 / 8 * ON_THE_WIRE,
        latency=0.0,
        buckets=len(buckets),
        last_bucket_bytes=BYTES[precision] * buckets[-1],
        hides=hides if len(buckets) > 1 else 0.0,
    )
    return model.seconds(2, 2)


def table(steps: list[Step], sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each link and reduction."""
    rows = []
    for megabits in dict.fromkeys(step["megabits"] for step in steps):
        here = {name: [s for s in steps if (s["megabits"], s["reduction"]) == (megabits, name)] for name in REDUCTIONS}
        base, several = medians(here[BASE]), medians(here[SEVERAL])
        share = several["hides"] / several["backward"]
        for name, own in here.items():
            found = medians(own)
            model = predicted(name, base, share * base["backward"], sizes, megabits)
            pairs = [one["seconds"] / other["seconds"] for one, other in zip(own, here[BASE], strict=True)]
            rows.append(
                {
                    "megabits": megabits,
                    "reduction": name,
                    "rounds": len(own),
                    "seconds": f"{found['seconds']:.3f}",
                    "lowest": f"{min(step['seconds'] for step in own):.3f}",
                    "highest": f"{max(step['seconds'] for step in own):.3f}",
                    **{part: f"{found[part]:.3f}" if part in found else "" for part in PARTS},
                    f"over {BASE}": f"{statistics.median(pairs):.3f}",
                    "model seconds": f"{model:.3f}",
                    "measured over model": f"{found['seconds'] / model:.3f}",
                    "highest load": f"{max(step['load'] for step in own):.2f}",
                    "parameters": sizes["parameters"],
                    "buckets": len(sizes["buckets"].get(name, [0])),
                }
            )
    return rows


PARTS = ("forward", "backward", "hides", "waiting", "update")
"""Of a step: `hides` are the seconds of backward after its first bucket has started, `waiting` those after backward
until the gradient is there."""


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.communication")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--megabits", type=int, nargs="+", default=[1000, 100])
    parser.add_argument("--rounds", type=int, nargs="+", default=[5, 2], help="for each of --megabits")
    parser.add_argument("--samples", type=int, default=4, help="of a ghost batch; each rank has one")
    options = parser.parse_args()
    if len(options.megabits) != len(options.rounds):
        parser.error("give as many --rounds as --megabits")
    rows = table(*measure(options.megabits, options.rounds, options.samples))
    where = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "commit": commit(),
        "command": shlex.join(["python", "-m", "benchmarks.communication", *sys.argv[1:]]),
    }
    kept: list[dict[str, Any]] = []
    if options.out.exists():
        with options.out.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if int(row["megabits"]) not in options.megabits]
    write_rows(options.out, sorted([row | where for row in rows] + kept, key=lambda row: -int(row["megabits"])))


if __name__ == "__main__":
    main()
