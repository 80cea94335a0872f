"""Small runs for tests of what reads runs: trained by the loop itself, all in one process."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from dmd.training.checkpoint import Snapshot
from dmd.training.checkpoint_writer import write_checkpoint
from tests.support.commands import command

SMALL = ("model.dim=8", "model.heads=2", "model.levels=1", "train.learning_rate=1e-3", "train.epochs=2")


def make_shards(path: Path, samples: int = 100, *more: str) -> Path:
    assert command("shard", "--synthetic", path, "--samples", samples, *more) == 0
    return path


TRAIN = """
import json, os, socket, sys
from pathlib import Path
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
from dmd.presets import load_config
from launch.engine import join_process_group
from launch.training import make_training
device = join_process_group()
for run, overrides in json.loads(sys.argv[2]).items():
    make_training(load_config(None, overrides), sys.argv[1], Path(run), device=device).run()
"""


def train(shards: Path | str, runs: dict[Path, list[str]]) -> list[Path]:
    """Runs of two epochs with the given overrides on top of `SMALL`, on one rank, all in one other process."""
    wanted = json.dumps({str(run): [*SMALL, *overrides] for run, overrides in runs.items()})
    result = subprocess.run([sys.executable, "-c", TRAIN, str(shards), wanted], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return list(runs)


def damage_state(run: Path, to: Path) -> None:
    """A run whose only checkpoint claims another width than its weights have."""
    from dmd.training.restore import best_checkpoint

    snapshot = best_checkpoint(run)
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
