"""Tiny shards, real Ray nodes and real `dmd` processes for the cluster tests."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil

from data_shards.format.schema import Sample
from data_shards.sources.synthetic import SyntheticSource
from data_shards.writing.build import build

TINY = [
    "model.dim=8",
    "model.heads=2",
    "model.levels=1",
    "train.ghost_batch_size=4",
    "train.ghost_batches_per_step=6",
    "train.ghost_batches_per_forward=3",
]
WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_grpc_client_keepalive_time_ms": "3000",
    "RAY_grpc_client_keepalive_timeout_ms": "3000",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}
"""Ray notices a lost node within seconds instead of half a minute, and a lost node its loss instead of minutes."""
SPARING = {
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
"""What every node of the tests spares, as a cluster of a command's own does (`cluster.ray_runtime.session`): processes
that start one after the other, workers that get no work, and those that look out for lost spot nodes."""
PATIENCE = 300


class FlippedTestLabels(SyntheticSource):
    """Small samples whose test labels have the wrong sign: what helps on valid harms on test."""

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        for sample in super().read(split, start, stop):
            yield replace(sample, label=-sample.label) if split == "test" else sample


def make_shards(path: Path) -> Path:
    """70 samples to train on, 10 to validate, 20 to test, in shards of 32."""
    build(FlippedTestLabels(samples=100, steps=20, text_dim=8), path, samples_per_shard=32)
    return path


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.2)


class Node:
    """`ray start --block` and all that it starts, on this host or inside a network namespace."""

    def __init__(self, temp: Path, *arguments: str, inside: list[str] | None = None, **environment: str) -> None:
        command = [
            *(inside or []),
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--num-gpus",
            "0",
            "--object-store-memory",
            "100000000",
            "--disable-usage-stats",
            *arguments,
        ]
        with open(temp.parent / f"{temp.name}.log", "ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **SPARING, **environment}, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def processes(self) -> list[psutil.Process]:
        """Everything of this node that lives."""
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        return self.named("RayTrainWorker")

    def named(self, text: str) -> list[psutil.Process]:
        """The processes with a text in their command line, where Ray says what a worker runs."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL to all of it, at once."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def dmd(*arguments: object, inside: list[str] | None = None, log: Path, **environment: str) -> subprocess.Popen[bytes]:
    """A `dmd` command under way in a process group of its own, its output in a file."""
    command = [*(inside or []), sys.executable, "-m", "dmd.cli", *map(str, arguments)]
    with open(log, "ab") as output:
        return subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=output, stderr=output, start_new_session=True
        )


def finish(process: subprocess.Popen[bytes], log: Path, code: int = 0) -> str:
    """Wait for a command; its output."""
    try:
        process.wait(PATIENCE)
    finally:
        process.kill()
    text = log.read_text(errors="replace")
    assert process.returncode == code, text
    return text


def assert_stopped(output: str, how_far: str) -> None:
    """A command that was asked to stop ends with one line that says how far it is, and with no stack."""
    assert "stopped on request; " in output
    assert output.rstrip().endswith(how_far)
    assert not [text for text in ("Traceback", "***", "Exception", "Error") if text in output], output


def records(experiment: Path) -> list[dict]:
    """The trial records of an experiment."""
    return [json.loads(path.read_text()) for path in sorted(experiment.glob("trials/*/trial.json"))]


def lines(run: Path, kind: str) -> list[dict]:
    """The lines of a kind in a run's log."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    found = []
    for text in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(text))
    return [line for line in found if line["kind"] == kind]
