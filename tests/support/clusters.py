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
from fsspec.config import conf, set_conf_env
from ray._raylet import Config

from data_shards.format.schema import Sample
from data_shards.sources.synthetic import SyntheticSource
from data_shards.writing.build import build
from dmd.cli import main
from tests.support.hosts import Host
from tests.support.ranks import PRELOADED, forks

forks.set_forkserver_preload(
    [
        *PRELOADED,
        "cluster.experiments.orchestrate",
        "cluster.experiments.training",
        "cluster.jobs.submit",
        "cluster.prediction.evaluate",
        "cluster.prediction.predict",
        "cluster.sharding.command",
    ]
)
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
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "8",
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


class Command:
    """A `dmd` command under way in a process group of its own, its output in a file; to use as `subprocess.Popen`.

    It is forked from a process that has imported all, which takes a command of a cluster three seconds.
    """

    def __init__(self, argv: list[str], host: Host | None, log: Path, environment: dict[str, str]) -> None:
        self._process = forks.Process(target=_run_command, args=(argv, host, str(log), environment))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        """Of the process and of its group."""

    @property
    def returncode(self) -> int | None:
        """The exit code, negative of a signal; None: it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As `returncode`."""
        return self._process.exitcode

    def wait(self, seconds: float = PATIENCE) -> None:
        """Wait for its end."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, "the command does not end"

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


def _run_command(argv: list[str], host: Host | None, log: str, environment: dict[str, str]) -> None:
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    set_conf_env(conf)  # fsspec read the variables when it was imported, and so did Ray
    Config.initialize("")
    if host is not None:
        host.enter()
    sys.exit(main(argv))


def dmd(*arguments: object, host: Host | None = None, log: Path, **environment: str) -> Command:
    """A `dmd` command under way, on a host of the test's."""
    return Command([str(argument) for argument in arguments], host, log, {**os.environ, **environment})


def dmd_anew(*arguments: object, log: Path) -> subprocess.Popen[bytes]:
    """The same in a process that starts from nothing."""
    command = [sys.executable, "-m", "dmd.cli", *map(str, arguments)]
    with open(log, "ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def finish(process: Command | subprocess.Popen[bytes], log: Path, code: int = 0) -> str:
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
