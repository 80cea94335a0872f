"""Small runs for tests of what reads runs: trained by the loop itself, all in one process."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from dmd.checkpoint.format import Snapshot
from dmd.checkpoint.writer import write_checkpoint
from dmd.config.loading import load_config
from dmd.report.inference import SplitResult, load_and_run_splits
from dmd.system.models import MODELS
from launch.network.ports import free_port
from launch.network.rank_environment import rank_environment
from launch.trainer.build import make_training
from launch.trainer.engine import join_process_group
from tests.support.commands import command
from tests.support.ranks import forks

SMALL = ("model.dim=8", "model.heads=2", "model.levels=1", "train.learning_rate=1e-3", "train.epochs=2")


def make_shards(path: Path, samples: int = 100, *more: str) -> Path:
    assert command("shard", "--synthetic", path, "--samples", samples, *more) == 0
    return path


def _train(shards: str, runs: dict[str, list[str]], environment: dict[str, str], log: str) -> None:
    """One rank, forked from a process that has imported all: one run after the other, each ended by its last line."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.clear()
    os.environ.update(environment | rank_environment(rank=0, ranks=1, port=free_port()))
    torch.set_num_threads(1)
    device = join_process_group()
    for run, overrides in runs.items():
        training = make_training(load_config(None, overrides), shards, Path(run), device=device)
        print(training.run().text(Path(run), 1), flush=True)


def small_for(name: str) -> list[str]:
    """What a model reads of `SMALL`, and its name."""
    return [*(each for each in SMALL if MODELS[name].reads_key(each.partition("=")[0])), f"model.name={name}"]


def train_and_capture(shards: Path | str, runs: dict[Path, list[str]], *, base: Sequence[str] = SMALL) -> str:
    """Runs with the given overrides on top of `base`, all in one other process; returns its output."""
    wanted = {str(run): [*base, *overrides] for run, overrides in runs.items()}
    with tempfile.NamedTemporaryFile("r") as log:
        process = forks.Process(target=_train, args=(str(shards), wanted, dict(os.environ), log.name))
        process.start()
        process.join()
        output = log.read()
    assert process.exitcode == 0, output
    return output


def train(shards: Path | str, runs: dict[Path, list[str]], *, base: Sequence[str] = SMALL) -> list[Path]:
    """The same; returns the runs."""
    train_and_capture(shards, runs, base=base)
    return list(runs)


def damage_state(run: Path, to: Path) -> None:
    """A run whose only checkpoint claims another width than its weights have."""
    from dmd.checkpoint.select import chosen_checkpoint

    snapshot = chosen_checkpoint(run)
    state = json.loads(json.dumps(snapshot.state))
    state["config"]["model"]["dim"] = 16
    to.mkdir(parents=True)
    write_checkpoint(
        to / "checkpoints",
        Snapshot(
            step=snapshot.step,
            model=snapshot.model,
            optimizer={"none": torch.zeros(1)},
            state=state | {"best_step": None},
        ),
        keep=2,
    )


def load_and_run(run: Path, data: Path, split: str) -> SplitResult:
    """One split by the best checkpoint of a run."""
    return load_and_run_splits(run, data, [split])[split]
