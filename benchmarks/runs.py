"""How long `dmd runs` takes for many runs, which are copies of a real one with other seeds and learning rates.

    python -m benchmarks.runs RUN benchmarks/results/runs.csv [--counts 100 500 1000] [--rounds 5]

Whole commands, medians over rounds; a row per number of runs, with machine and commit.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.tables import Table, commit, processor
from dmd.documents import DOCUMENT

_BRANCHES = 10
"""Folders that each level of the tree has."""


def fabricate(run: Path, root: Path, count: int) -> None:
    """Write copies of a run into a tree of folders; all but run.json are hard links."""
    for number in range(count):
        to = (
            root
            / f"sweep_{number % _BRANCHES}"
            / f"group_{number // _BRANCHES % _BRANCHES}"
            / "trials"
            / f"{number:04d}"
        )
        shutil.copytree(run, to, copy_function=_copy)
        document = json.loads((to / DOCUMENT).read_bytes())
        train = document["config"]["train"]
        train["seed"], train["learning_rate"] = number % 5, 1e-4 * (1 + number // 5)
        (to / DOCUMENT).unlink()
        (to / DOCUMENT).write_text(json.dumps(document))


def _copy(source: str, to: str) -> None:
    os.link(source, to)


def seconds(root: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of a command."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "dmd.cli", "runs", root], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, metavar="OUT.csv")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 500, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    table = Table(options.out)
    for count in options.counts:
        with tempfile.TemporaryDirectory(dir=options.run.resolve().parent) as folder:
            fabricate(options.run, Path(folder), count)
            rounds = [seconds(Path(folder)) for _ in range(options.rounds)]
        wall, cpu = (statistics.median(of) for of in zip(*rounds, strict=True))
        row = {
            "runs": count,
            "CPU seconds": round(cpu, 2),
            "wall seconds": round(wall, 2),
            "rounds": options.rounds,
            "load before": round(os.getloadavg()[0], 1),
            "machine": processor(),
            "commit": commit(),
            "command": f"python -m benchmarks.runs RUN {options.out}",
        }
        table.add(row)
        print(f"{count} runs: {cpu:.2f} s of CPU, {wall:.2f} s", flush=True)


if __name__ == "__main__":
    main()
