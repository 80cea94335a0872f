"""Rows per second of `dmd shard`: one and two processes, and a Ray cluster of one and of two hosts of one CPU each.

    python -m benchmarks.sharding OUT.csv [--files 48] [--rows 256] [--rounds 3]

Hosts are network namespaces of this machine (root, iproute2), so four sides share its cores, disk and page cache: with
two cores neither two processes nor two hosts can be twice as fast. Each side is the whole command, on the same
directory of Parquet files, and once on two files of two rows, which is what its start and end cost: `rows per second`
has that in it, `beyond the start` has not. Sides alternate; medians of the rounds, and the medians of the rounds'
ratios to one process. CPU seconds are those of the command, its processes and the cluster's; they do not depend on what
else the machine does. `bytes` says whether every side has written the same files.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import resource
import secrets
import shlex
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
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
SAMPLES_PER_SHARD = 256
LOOK_SECONDS = 0.5
BASE = "1 process"
Side = Callable[[Path, Path], float]
"""Makes shards of features; the CPU seconds that it took."""


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
def cluster(folder: Path, members: tuple[Host, ...]) -> Iterator[tuple[str, list[Node]]]:
    """The address of a cluster with a node of one CPU on each of some hosts, and its nodes."""
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
        yield address, nodes
    finally:
        for node in reversed(nodes):
            node.kill()


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    cpu_seconds: float


def cost(run: Side, features: Path, out: Path) -> Cost:
    """Run a side."""
    begin = time.perf_counter()
    cpu_seconds = run(features, out)
    return Cost(time.perf_counter() - begin, cpu_seconds)


class CpuMeter:
    """CPU seconds of commands that end, and of the processes of nodes, which end unseen: they are looked at often."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._seen: dict[tuple[int, float], float] = {}
        """Process and when it was created -> its CPU seconds when it was seen last."""

    @contextmanager
    def measured(self) -> Iterator[Callable[[], float]]:
        """Yields what says, after the block, how many CPU seconds it took."""
        over = threading.Event()
        self._look()
        before, watch = self._total(), threading.Thread(target=self._watch, args=(over,))
        took = 0.0
        watch.start()
        try:
            yield lambda: took
        finally:
            over.set()
            watch.join()
            self._look()
            took = self._total() - before

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        for process in (process for node in self._nodes for process in node.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen[process.pid, process.create_time()] = sum(process.cpu_times()[:2])

    def _total(self) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return ended.ru_utime + ended.ru_stime + sum(self._seen.values())


def side(folder: Path, *more: object, inside: list[str] | None = None, nodes: Sequence[Node] = ()) -> Side:
    """`dmd shard` with more options, on a host; `nodes` are those of its cluster."""

    def run(features: Path, out: Path) -> float:
        log = folder / "log"
        options = ["--samples-per-shard", SAMPLES_PER_SHARD, "--name", "noise", *more]
        with CpuMeter(nodes).measured() as took:
            finish(dmd("shard", features, out, *options, inside=inside, log=log), log)
        return took()

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
                BASE: side(folder, "--processes", 1),
                "2 processes": side(folder, "--processes", 2),
                "Ray, 1 host": side(folder, "--address", single[0], inside=alone.inside, nodes=single[1]),
                "Ray, 2 hosts": side(folder, "--address", pair[0], inside=head.inside, nodes=pair[1]),
            }
            whole: dict[str, list[Cost]] = {name: [] for name in sides}
            start: dict[str, list[Cost]] = {name: [] for name in sides}
            digests = {}
            for _ in range(rounds):
                for name, run in sides.items():
                    out = folder / f"out-{name.replace(' ', '-')}"
                    start[name].append(cost(run, tiny, folder / f"tiny-{out.name}"))
                    shutil.rmtree(folder / f"tiny-{out.name}")
                    whole[name].append(cost(run, features, out))
                    digests[name] = digest(out)
                    shutil.rmtree(out)
                    print(name, whole[name][-1], "start:", start[name][-1], flush=True)
    rows_in_all = files * rows
    seconds = {name: [cost.seconds for cost in costs] for name, costs in whole.items()}
    beyond = {
        name: [all_of_it.seconds - first.seconds for all_of_it, first in zip(costs, start[name], strict=True)]
        for name, costs in whole.items()
    }
    return [
        {
            "side": name,
            "rows": rows_in_all,
            "rows per second": round(rows_in_all / statistics.median(seconds[name]), 1),
            "times 1 process": _ratio(seconds[BASE], seconds[name]),
            "beyond the start: rows per second": round(rows_in_all / statistics.median(beyond[name]), 1),
            "beyond the start: times 1 process": _ratio(beyond[BASE], beyond[name]),
            "seconds of the start": round(statistics.median(cost.seconds for cost in start[name]), 2),
            "CPU seconds per 1000 rows beyond the start": round(
                1000
                * statistics.median(
                    all_of_it.cpu_seconds - first.cpu_seconds
                    for all_of_it, first in zip(whole[name], start[name], strict=True)
                )
                / rows_in_all,
                3,
            ),
            "CPU seconds of the start": round(statistics.median(cost.cpu_seconds for cost in start[name]), 2),
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
    parser.add_argument("--files", type=int, default=48)
    parser.add_argument("--rows", type=int, default=256, help="in a file")
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
