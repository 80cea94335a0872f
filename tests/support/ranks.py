"""Real ranks for tests: real processes, signals, gloo and files, each forked from one process that has imported all.

A rank is what `launch/train.py` makes of it: a supervisor and the process that trains. Only the launcher is left out,
which takes ten seconds to start; `test_launcher.py` and `test_hosts.py` go through it.
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from fsspec.config import conf, set_conf_env

from dmd.checkpoint.format import Snapshot, newest_whole, read_checkpoint
from launch.network.ports import reserved_port
from launch.network.rank_environment import rank_environment
from launch.supervision.supervise import supervise
from launch.trainer.engine import join_process_group
from launch.trainer.main import main

TINY = [
    "model.dim=8",
    "model.heads=2",
    "model.levels=1",
    "train.ghost_batch_size=4",
    "train.ghost_batches_per_step=6",
    "train.ghost_batches_per_forward=3",
    "train.epochs=2",
    "train.collective_timeout=120",
]
"""A small model; with the shards of the fixture an epoch has 5 steps, the last one of 4 ghost batches."""
ENDLESS = ("train.epochs=500", "train.early_stop=500", "train.keep_checkpoints=9999")
"""Stopped by the test; every checkpoint stays, for `--resume 4`."""
PATIENCE = 240
"""Seconds that a test waits for anything."""

PRELOADED = (
    "launch.trainer.main",
    "launch.trainer.build",
    "dmd.training.logging.logbook",
    "fsspec.config",
    # What a rank imports on its way:
    "torch._dynamo",
    "setuptools",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "tensorboard.plugins.hparams.metadata",
    "matplotlib.pyplot",
)
"""Modules that a forked process finds imported. None of tests: the server looks for modules in the working directory
and then among the installed packages, where opensmile puts a package `tests` of its own."""
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True)
class Ended:
    """How a session of a training ended."""

    codes: list[int]
    output: str
    seconds: float
    """From the end of the first rank to the end of the last: what it takes to notice a death."""


def _rank(argv: list[str], environment: dict[str, str], log: str) -> None:
    os.environ.update(environment)
    set_conf_env(conf)  # fsspec read the variables when it was imported
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    sys.exit(supervise(lambda stop, channels: main(argv, stop, channels)))


class Session:
    """A training under way on `ranks` processes of this machine; `own` are further arguments of each rank alone."""

    def __init__(
        self,
        shards: Path | str,
        run: Path,
        *overrides: str,
        ranks: int = 1,
        resume: str = "auto",
        own: Sequence[Sequence[str]] | None = None,
        **env: str,
    ):
        folder = run.parent.parent if run.parent.is_mount() else run.parent  # not on a disk that a test fills
        self.log = tempfile.mkstemp(prefix="dmd-test-", suffix=".log", dir=folder)[1]
        argv = ["--data", str(shards), "--run", str(run), "--resume", resume, *TINY, *overrides]
        self._reserved = ExitStack()
        port = self._reserved.enter_context(reserved_port())
        self.processes = []
        for rank in range(ranks):
            environment = {
                **rank_environment(rank=rank, ranks=ranks, port=port),
                "OMP_NUM_THREADS": "1",
                **env,
            }
            arguments = [*argv, *(own[rank] if own else ())]
            self.processes.append(forks.Process(target=_rank, args=(arguments, environment, self.log)))
        for process in self.processes:
            process.start()

    @property
    def output(self) -> str:
        return Path(self.log).read_text(errors="replace")

    def supervisor(self, rank: int) -> int:
        """Process id of a rank's supervisor."""
        pid = self.processes[rank].pid
        assert pid is not None
        return pid

    def trainer(self, rank: int) -> int:
        """Process id of the process that trains."""
        supervisor = self.supervisor(rank)
        return int(Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0])

    def wait(self) -> Ended:
        running = {process.sentinel for process in self.processes}
        ends: list[float] = []
        while running and (ended := wait(running, PATIENCE)):
            ends += [time.monotonic()] * len(ended)
            running -= set(ended)
        hanging = [rank for rank, process in enumerate(self.processes) if process.sentinel in running]
        for process in self.processes:
            process.kill()
            process.join()
        self._reserved.close()
        assert not hanging, f"ranks hang: {hanging}\n{self.output}"
        codes = [process.exitcode for process in self.processes]
        return Ended([code for code in codes if code is not None], self.output, ends[-1] - ends[0])


Job = Callable[[int, Path], dict[str, Any]]
"""What a rank computes, of its number and a folder."""


def _job(job: Job, environment: dict[str, str], folder: Path) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    join_process_group(timedelta(seconds=PATIENCE))
    rank = int(environment["RANK"])
    torch.save(job(rank, folder), folder / f"rank{rank}.pt")


def on_ranks(job: Job, folder: Path, ranks: int = 2) -> list[dict[str, Any]]:
    """What `job(rank, folder)` gives on each of so many ranks, which train nothing of themselves."""
    processes = []
    with reserved_port() as port:
        for rank in range(ranks):
            environment = rank_environment(rank=rank, ranks=ranks, port=port)
            processes.append(forks.Process(target=_job, args=(job, environment, folder)))
        for process in processes:
            process.start()
        for process in processes:
            process.join(PATIENCE)
            process.kill()
    assert [process.exitcode for process in processes] == [0] * ranks
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(ranks)]


def train(
    shards: Path | str,
    run: Path,
    *overrides: str,
    ranks: int = 1,
    resume: str = "auto",
    own: Sequence[Sequence[str]] | None = None,
    **env: str,
) -> Ended:
    """Train to the end of the session. `env` goes to the ranks: DMD_FAULT, DMD_AUDIT."""
    return Session(shards, run, *overrides, ranks=ranks, resume=resume, own=own, **env).wait()


def finish(shards: Path | str, run: Path, *overrides: str, ranks: int = 1, resume: str = "auto", **env: str) -> Ended:
    """Train, and require that all ranks ended with 0."""
    ended = train(shards, run, *overrides, ranks=ranks, resume=resume, **env)
    assert ended.codes == [0] * ranks, ended.output
    return ended


def errors(output: str) -> list[str]:
    """The errors that ranks print, once each: without a `dmd train` each of them prints its own."""
    return list(dict.fromkeys(line for line in output.splitlines() if line.startswith("dmd train: error: ")))


def last(run: Path) -> Snapshot:
    """The newest checkpoint of a run."""
    path, skipped = newest_whole(run / "checkpoints")
    assert path is not None
    assert not skipped
    return read_checkpoint(path)


def newest_step(run: Path) -> int:
    """Step of the newest checkpoint of a run that is under way, by its name; retention may remove it at any time."""
    return max((int(path.name.removeprefix("step_")) for path in run.glob("checkpoints/step_*")), default=0)


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, total loss) as the log has them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/total"]) for line in lines if "train/total" in line]


def assert_bitwise(run: Path, reference: Path) -> None:
    """Weights, optimizer, schedule, cursor and the whole curve of two runs are bitwise identical."""
    one, other = last(run), last(reference)
    assert one.step == other.step
    for name in ("schedule", "cursor", "best_step", "nonfinite_in_a_row"):
        assert one.state[name] == other.state[name], name
    for mine, its in ((one.model, other.model), (one.optimizer, other.optimizer)):
        assert mine.keys() == its.keys()
        assert [name for name in mine if not torch.equal(mine[name], its[name])] == []
    assert losses(run) == losses(reference)
    assert [step for step, _ in losses(run)] == list(range(1, one.step + 1))


def assert_close(run: Path, reference: Path, tolerance: float = 2e-4) -> None:
    """The losses and weights of two runs are equal within a relative tolerance."""
    assert [step for step, _ in losses(run)] == [step for step, _ in losses(reference)]
    for (step, mine), (_, its) in zip(losses(run), losses(reference), strict=True):
        assert abs(mine - its) <= tolerance * abs(its), f"step {step}: {mine} and {its}"
    one, other = last(run), last(reference)
    assert one.model.keys() == other.model.keys()
    for name, weight in one.model.items():
        torch.testing.assert_close(weight, other.model[name], rtol=0.01, atol=2e-4, msg=name)


def committed_samples(audit: Path) -> dict[tuple[int, int], Counter[str]]:
    """Samples of each committed step, {(epoch, step): ids}: a session repeats what came after its checkpoint."""
    steps: dict[tuple[int, int], Counter[str]] = {}
    sessions: dict[str, list[Path]] = {}
    for path in sorted(audit.iterdir()):
        sessions.setdefault(path.name.rpartition("-")[0], []).append(path)
    for paths in sessions.values():
        parsed = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
        resumed = {lines[0]["resumed"] for lines in parsed}
        assert len(resumed) == 1
        steps = {key: ids for key, ids in steps.items() if key[1] <= min(resumed)}
        for line in (line for lines in parsed for line in lines[1:]):
            steps.setdefault((line["epoch"], line["step"]), Counter()).update(line["ids"])
    return steps
