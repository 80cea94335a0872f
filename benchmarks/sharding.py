"""Rows per second of `dmd shard`: one and two processes, and a Ray cluster of one and of two hosts of one CPU each.

    python -m benchmarks.sharding OUT.csv [--files 32] [--rows 64] [--rounds 3]

Hosts are network namespaces of this machine (root, iproute2), so four sides share its cores, disk and page cache: with
two cores neither two processes nor two hosts can be twice as fast. Each side is the whole command, on the same
directory of Parquet files, and once on files of one row, which is what its start and end cost: `rows per second` has
that in it, `beyond the start` has not. Sides alternate; medians of the rounds, and the medians of the rounds' ratios to
one process. `bytes` says whether every side has written the same files.
"""

import argparse
import hashlib
import json
import os
import platform
import secrets
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.cluster_runs import wait_for
from benchmarks.tables import commit, processor, write_rows
from dmd.training.logging.provenance import versions
from launch.network.ports import free_port
from tests.support.clusters import Node, dmd, finish
from tests.support.hosts import Host, hosts

SHAPES = {"text": (50, 300), "audio": (50, 74), "vision": (50, 35)}
"""Steps and features of a row, as in aligned MOSEI with GloVe's words."""
ROW_GROUP = 32
SAMPLES_PER_SHARD = 64
BASE = "1 process"
Side = Callable[[Path, Path], None]


def write_features(folder: Path, files: int, rows: int) -> Path:
    """A directory of Parquet files of random features."""
    folder.mkdir(parents=True)
    for number in range(files):
        random = np.random.default_rng(number)
        columns = {
            "split": pa.array(["valid" if number == 0 else "train"] * rows),
            "id": pa.array([f"video{number}[{row}]" for row in range(rows)]),
            "label": pa.array((np.arange(rows) % 61 / 10 - 3).astype(np.float64)),
        }
        for modality, (steps, features) in SHAPES.items():
            values = random.standard_normal(rows * steps * features, dtype=np.float32)
            inner = pa.ListArray.from_arrays(np.arange(rows * steps + 1, dtype=np.int32) * features, pa.array(values))
            columns[modality] = pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32) * steps, inner)
        pq.write_table(pa.table(columns), folder / f"{number:05d}.parquet", row_group_size=ROW_GROUP)
    return folder


@contextmanager
def cluster(folder: Path, members: tuple[Host, ...]) -> Iterator[str]:
    """The address of a cluster with a node of one CPU on each of some hosts."""
    folder.mkdir()
    temp, log, address = folder / "r", folder / "r.log", f"{members[0].address}:{free_port()}"
    nodes: list[Node] = []
    try:
        for host in members:
            port = address.rpartition(":")[2]
            head = ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", str(temp)]
            options = head if not nodes else ["--address", address]
            nodes.append(Node(temp, *options, "--num-cpus", "1", "--node-ip-address", host.address, inside=host.inside))
            wait_for(lambda: log.exists() and log.read_text().count("Ray runtime started") == len(nodes), "a node")
        yield address
    finally:
        for node in reversed(nodes):
            node.kill()


def seconds(run: Side, features: Path, out: Path) -> float:
    """Seconds of a command that makes shards."""
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    run(features, out)
    return time.perf_counter() - begin


def on_this_machine(processes: int, folder: Path) -> Side:
    """`dmd shard --processes`."""

    def run(features: Path, out: Path) -> None:
        log = folder / "log"
        options = ["--samples-per-shard", SAMPLES_PER_SHARD, "--name", "noise"]
        finish(dmd("shard", features, out, *options, "--processes", processes, log=log), log)

    return run


def on_cluster(address: str, inside: list[str], folder: Path) -> Side:
    """`dmd shard --address`, on the cluster's head."""

    def run(features: Path, out: Path) -> None:
        log = folder / "log"
        options = ["--samples-per-shard", SAMPLES_PER_SHARD, "--name", "noise"]
        finish(dmd("shard", features, out, *options, "--address", address, inside=inside, log=log), log)

    return run


def digest(folder: Path) -> str:
    """Of all files of a directory."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def measure(folder: Path, files: int, rows: int, rounds: int) -> list[dict[str, object]]:
    """One row per side."""
    features, tiny = write_features(folder / "features", files, rows), write_features(folder / "tiny", 2, 2)
    with hosts(3) as (alone, head, worker):
        one, two = cluster(folder / "one", (alone,)), cluster(folder / "two", (head, worker))
        with one as single, two as pair:
            sides = {
                BASE: on_this_machine(1, folder),
                "2 processes": on_this_machine(2, folder),
                "Ray, 1 host": on_cluster(single, alone.inside, folder),
                "Ray, 2 hosts": on_cluster(pair, head.inside, folder),
            }
            whole: dict[str, list[float]] = {name: [] for name in sides}
            start: dict[str, list[float]] = {name: [] for name in sides}
            digests = {}
            for _ in range(rounds):
                for name, run in sides.items():
                    out = folder / f"out-{name.replace(' ', '-')}"
                    start[name].append(seconds(run, tiny, out))
                    whole[name].append(seconds(run, features, out))
                    digests[name] = digest(out)
                    print(name, f"{whole[name][-1]:.2f} s, start {start[name][-1]:.2f} s", flush=True)
    return [
        {
            "side": name,
            "rows": files * rows,
            "rows per second": round(files * rows / statistics.median(whole[name]), 1),
            "beyond the start": round(
                files * rows / statistics.median(map(float.__sub__, whole[name], start[name])), 1
            ),
            "times 1 process": _ratio(whole[BASE], whole[name]),
            "times 1 process beyond the start": _ratio(
                list(map(float.__sub__, whole[BASE], start[BASE])), list(map(float.__sub__, whole[name], start[name]))
            ),
            "seconds of the start": round(statistics.median(start[name]), 2),
            "bytes": "same" if digests[name] == digests[BASE] else "other",
        }
        for name in sides
    ]


def _ratio(base: list[float], other: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(base, other, strict=True)), 2)


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharding", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--rows", type=int, default=64, help="in a file")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.environ |= {
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    where = {
        "load before": round(os.getloadavg()[0], 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {processor()}",
        "commit": commit(),
        "command": shlex.join(["python", "-m", "benchmarks.sharding", *sys.argv[1:]]),
        "versions": json.dumps(versions(), sort_keys=True),
    }
    with tempfile.TemporaryDirectory(prefix="b-") as name:
        rows = measure(Path(name), options.files, options.rows, options.rounds)
    write_rows(options.out, [{**row, **where} for row in rows])
    for row in rows:
        print(*row.values(), sep=" | ")


if __name__ == "__main__":
    main()
