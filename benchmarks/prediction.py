"""Samples per second of `dmd predict`: one process, actors of one host, actors of two hosts in network namespaces.

    python -m benchmarks.prediction OUT.csv [--rounds 3] [--samples 4000]

Sides alternate; every process has one thread. The model is that of the preset mosi-aligned, trained for one step; the
data are synthetic. `while predicting` is from the first part to the last one, by their files' times. Clusters stand
before the clock starts, and one at a time. Needs root and iproute2 for the hosts.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.cluster_runs import finish, train, wait_for
from benchmarks.tables import processor
from data_shards.sources.synthetic import SyntheticSource
from data_shards.writing.build import build
from dmd.training.logging.provenance import git_commit, versions
from tests.support.clusters import Node
from tests.support.hosts import hosts

PORT = 6379
PART = 128
SIDES = {
    "one process": (0, 0),
    "one host, 1 actor": (1, 1),
    "one host, 2 actors": (1, 2),
    "two hosts, 2 actors": (2, 2),
}
"""Hosts and actors."""
BASE = "one process"


@contextmanager
def cluster(count: int, folder: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Two CPUs on so many hosts; what to put before a command so that it runs on the head, and its options."""
    if count == 0:
        yield [], []
        return
    log = folder / "r.log"
    cpus = ["--num-cpus", str(2 // count)]
    with hosts(count) as made:
        address = f"{made[0].address}:{PORT}"
        nodes: list[Node] = []
        try:
            for number, host in enumerate(made):
                role = ["--address", address] if number else ["--head", "--port", str(PORT)]
                own = [] if number else ["--include-dashboard", "false", "--temp-dir", str(folder / "r")]
                where = ["--node-ip-address", host.address, *cpus]
                nodes.append(Node(folder / "r", *role, *own, *where, inside=host.inside, RAY_AUTH_MODE="token"))
                wait_for(lambda ups=number + 1: log.read_text().count("Ray runtime started") == ups, "a node")  # type: ignore[misc]
            yield made[0].inside, ["--address", address]
        finally:
            for node in nodes:
                node.kill()
            log.unlink()


def predict(run: Path, shards: Path, out: Path, inside: list[str], *options: str) -> tuple[float, float]:
    """Samples per second of a whole command, and while it predicts."""
    order = ["predict", run, shards, "--split", "train", "--out", out, "--samples-per-part", PART, *options]
    begin = time.monotonic()
    subprocess.run([*inside, sys.executable, "-m", "dmd.cli", *map(str, order)], check=True, capture_output=True)
    seconds = time.monotonic() - begin
    manifest = json.loads((out / "_manifest.json").read_text())
    times = sorted((out / entry["name"]).stat().st_mtime for entry in manifest["parts"])
    return manifest["rows"] / seconds, (manifest["rows"] - PART) / (times[-1] - times[0])


def measure(folder: Path, samples: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Every side `rounds` times."""
    shards, run = folder / "shards", folder / "run"
    build(SyntheticSource(samples=samples, text_dim=300), shards, samples_per_shard=512)
    finish(train(shards, run, "--preset", "mosi-aligned", "--ranks", 1, "train.max_steps=1"))
    print("data and model are there", flush=True)
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for count in sorted({on for on, _ in SIDES.values()}):
            with cluster(count, folder) as (inside, options):
                for side, (on, actors) in SIDES.items():
                    if on == count:
                        chosen = [*options, *(["--actors", str(actors)] if actors else [])]
                        out = folder / f"{number}-{side.replace(' ', '-')}"
                        found[side].append(predict(run, shards, out, inside, *chosen))
                        print(number, side, *(f"{rate:.1f}" for rate in found[side][-1]), flush=True)
    return found


def rows(found: dict[str, list[tuple[float, float]]]) -> list[dict[str, str]]:
    """Medians of the rounds, and medians of their ratios to one process."""
    where = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "commit": git_commit() or "",
        "command": shlex.join(["python", "-m", "benchmarks.prediction", *sys.argv[1:]]),
        "versions": json.dumps(versions(), sort_keys=True),
    }
    table = []
    for kind, name in enumerate(("whole command", "while predicting")):
        for side, rates in found.items():
            ratios = [rate[kind] / base[kind] for rate, base in zip(rates, found[BASE], strict=True)]
            figures = {
                "side": side,
                "what": name,
                "samples per second": f"{statistics.median(rate[kind] for rate in rates):.1f}",
                "over one process": f"{statistics.median(ratios):.3f}",
                "least": f"{min(ratios):.3f}",
                "most": f"{max(ratios):.3f}",
                "rounds": str(len(rates)),
            }
            table.append(figures | where)
    return table


def main() -> None:
    """Measure all sides, then write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prediction", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4000, help="7 of 10 are predicted")
    options = parser.parse_args()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    with tempfile.TemporaryDirectory(prefix="b-") as name:
        table = rows(measure(Path(name), options.samples, options.rounds))
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    for row in table:
        print(*list(row.values())[:6])


if __name__ == "__main__":
    main()
