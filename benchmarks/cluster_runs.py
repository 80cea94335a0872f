"""What `benchmarks.cluster` measures with: `dmd` commands as processes, their logs, a standing Ray cluster."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from launch.network.ports import free_port

PATIENCE = 300


def start(*arguments: object, **environment: str) -> "subprocess.Popen[bytes]":
    """A Python module as a command under way; what it prints is kept for errors."""
    command = [sys.executable, "-m", *map(str, arguments)]
    output = tempfile.TemporaryFile()  # noqa: SIM115  it belongs to the process
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT)
    process.stdout = output
    return process


def finish(process: "subprocess.Popen[bytes]") -> str:
    """Wait for it; what it printed. SystemExit where it failed."""
    try:
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.stdout is not None
    process.stdout.seek(0)
    text = process.stdout.read().decode(errors="replace")
    if process.returncode:
        raise SystemExit(f"{shlex.join(map(str, process.args))} ended with {process.returncode}:\n{text[-3000:]}")
    return text


def lines(run: Path, kind: str = "train") -> list[dict[str, Any]]:
    """The whole lines of a kind in a run's log."""
    path = run / "metrics.jsonl"
    texts = path.read_text().splitlines(keepends=True) if path.exists() else []
    parsed = [json.loads(text) for text in texts if text.endswith("\n")]
    return [entry for entry in parsed if entry["kind"] == kind]


def step_seconds(run: Path) -> list[float]:
    """Seconds between one step and the next inside an epoch, without the first two."""
    ends = {entry["step"] for entry in lines(run, "valid")}
    times = [(entry["step"], entry["time"]) for entry in lines(run)]
    return [after - before for (step, before), (_, after) in pairwise(times[1:]) if step not in ends]


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Poll until a condition holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.05)


def train(shards: Path, run: Path, *settings: object, **environment: str) -> "subprocess.Popen[bytes]":
    """`dmd train` under way."""
    return start("dmd.cli", "train", "--data", shards, "--run", run, *settings, **environment)


def tune(shards: Path, out: Path, rates: tuple[float, ...], *options: object) -> "subprocess.Popen[bytes]":
    """`dmd tune` over learning rates under way."""
    out.mkdir(parents=True)
    space = out.parent / f"{out.name}.yaml"
    space.write_text(f"train.learning_rate: {{choice: {list(rates)}}}\n")
    fixed = ("--search", "grid", "--scheduler", "none", "--space", space, "--data", shards, "--out", out)
    return start("dmd.cli", "tune", *fixed, *options)


@contextlib.contextmanager
def standing_cluster(folder: Path) -> Iterator[str]:
    """The address of a head node of two CPUs, started before the clock."""
    port = free_port()
    node = start(
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        "--port",
        port,
        "--num-cpus",
        2,
        "--dashboard-host",
        "127.0.0.1",
        "--dashboard-port",
        free_port(),
        "--node-ip-address",
        "127.0.0.1",
        "--temp-dir",
        folder / "ray",
    )
    try:
        gcs = folder / "ray" / "session_latest" / "logs" / "dashboard.log"
        wait_for(lambda: gcs.exists() and "http" in gcs.read_text(), "the head node")
        yield f"127.0.0.1:{port}"
    finally:
        for process in [*psutil.Process(node.pid).children(recursive=True), node]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
