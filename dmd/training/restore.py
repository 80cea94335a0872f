"""A trained run as a system ready to predict; needs neither DeepSpeed nor Ray.

    trained = open_run(Path("RUN"))
    trained.system.predict(batch)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.reader import ShardReader
from data_shards.schema import DatasetInfo
from dmd.config import Config
from dmd.data.targets import check_classes
from dmd.kernels.backend import default_device, set_float32_products
from dmd.model.text import build_text_encoder
from dmd.training.checkpoint import Snapshot, find_step, newest_valid, read_checkpoint
from dmd.training.evaluate import evaluate
from dmd.training.passes import settle_prediction
from dmd.training.saving import CHECKPOINTS
from dmd.training.state import check_fits, saved_config
from dmd.training.system import TrainingSystem


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A system with the weights of one checkpoint."""

    system: TrainingSystem
    config: Config
    state: dict[str, Any]
    """The checkpoint's JSON state."""
    step: int
    device: torch.device


def best_checkpoint(run: Path) -> Snapshot:
    """The checkpoint with the best validation loss; the newest where no epoch was finished yet.

    Raises:
        ValueError: no checkpoint, or the one that is wanted is damaged.
    """
    root = run / CHECKPOINTS
    newest, _ = newest_valid(root)
    if newest is None:
        raise ValueError(f"{run} holds no checkpoint: not the directory of a run, or one that has saved nothing yet")
    snapshot = read_checkpoint(newest)
    best = snapshot.state["best_step"]
    return snapshot if best in (None, snapshot.step) else read_checkpoint(find_step(root, best))


def open_run(run: Path, *, info: DatasetInfo) -> TrainedRun:
    """Load the best checkpoint for data described by `info`, on this process's default device.

    Raises:
        ValueError: no checkpoint, or data that the model cannot read.
    """
    snapshot = best_checkpoint(run)
    check_fits(snapshot.state["data"], info)
    config = saved_config(snapshot.state)
    check_classes(config, info)
    device = default_device()
    settings = snapshot.state["text_encoder"]
    encoder = None if settings is None else build_text_encoder(settings, frozen=config.text.frozen)
    system = TrainingSystem(config, info, encoder, device, binding=False)
    system.load_state_dict(snapshot.model)
    system.to(device).eval()
    set_float32_products(tf32=system.execution.tf32)  # kernels are tried as they will run
    settle_prediction(system, info)
    return TrainedRun(system=system, config=config, state=snapshot.state, step=snapshot.step, device=device)


def training_data(run: Path) -> str:
    """Where the shards of a run's training are, as its run.json says.

    Raises:
        ValueError: no readable run.json.
    """
    try:
        return str(json.loads((run / "run.json").read_text(encoding="utf-8"))["info"]["data"])
    except (OSError, ValueError, KeyError) as error:
        what = "an export, which `dmd predict` reads" if (run / "model.json").exists() else "not the directory of a run"
        raise ValueError(
            f"{run} has no readable run.json: {what}; give a directory that `dmd train --run` was given"
        ) from error


def evaluate_run(run: Path, *, data: str | None, split: str) -> dict[str, Any]:
    """Metrics of a run's best checkpoint on a split, for all heads; every rank gets them.

    Raises:
        ValueError: as `open_run`, or shards without that split.
    """
    if not run.is_dir():
        raise ValueError(f"there is no run directory {run}")
    with ShardReader(data or training_data(run)) as reader:
        info = reader.index.info
        trained = open_run(run, info=info)
        result = evaluate(trained.system, reader, split, trained.config, device=trained.device)
    return {
        "run": str(run), "step": trained.step, "data": info.name, "generation": info.generation, "split": split,
        "samples": len(result.labels), "metrics": result.metrics(),
    }  # fmt: skip
