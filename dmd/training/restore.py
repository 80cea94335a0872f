"""A trained run as a system ready to predict; needs neither DeepSpeed nor Ray.

trained = open_run(Path("RUN"))
trained.system.predict(batch)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_shards.format.schema import DatasetInfo
from data_shards.places import Place, Where, to_place
from data_shards.reading.reader import ShardReader
from data_shards.storage.store import was_opened
from dmd.config import Config
from dmd.data.targets import check_classes
from dmd.declared import check_declared
from dmd.kernels.backend import default_device, set_float32_products
from dmd.model.text import build_text_encoder
from dmd.training.checkpoint import Snapshot, find_step, newest_valid, read_checkpoint
from dmd.training.documents import check_state, read_document
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
    check_state(snapshot.state, str(newest))
    best = snapshot.state["best_step"]
    if best not in (None, snapshot.step):
        snapshot = read_checkpoint(find_step(root, best))
        check_state(snapshot.state, f"{root}, step {best}")
    return snapshot


def open_run(run: Path, *, info: DatasetInfo) -> TrainedRun:
    """Load the best checkpoint for data described by `info`, on this process's default device.

    Raises:
        ValueError: no checkpoint, one whose weights are not of the model that it declares, or data that the model
            cannot read.
    """
    snapshot = best_checkpoint(run)
    check_fits(snapshot.state["data"], info)
    config = saved_config(snapshot.state)
    check_classes(config, info)
    device = default_device()
    settings = snapshot.state["text_encoder"]

    def build() -> TrainingSystem:
        encoder = None if settings is None else build_text_encoder(settings, frozen=config.text.frozen)
        return TrainingSystem(config, info, encoder, device, binding=False)

    check_declared(build, snapshot.model, snapshot.state["config"], settings)
    system = build()
    system.load_state_dict(snapshot.model)
    system.to(device).eval()
    set_float32_products(tf32=system.execution.tf32)  # kernels are tried as they will run
    settle_prediction(system, info)
    return TrainedRun(system=system, config=config, state=snapshot.state, step=snapshot.step, device=device)


def training_data(run: Path) -> Place:
    """Where the shards of a run's training are, as its run.json says.

    A URL is taken from there only where this node's cache has read it before: a run directory may come from anybody,
    and it holds no credentials.

    Raises:
        ValueError: no readable run.json, none that names shards, or a URL that nobody here has asked for.
    """
    try:
        data = read_document(run)["info"].get("data")
    except ValueError as error:
        raise ValueError(f"{error}; or name the shards with --data") from error
    if not isinstance(data, str) or not data:
        raise ValueError(f"{run} does not say where its shards are; name them with --data")
    place = to_place(data)
    if place.is_url and not was_opened(place):
        raise ValueError(f"{run} names shards at {place}, which were never read here; to fetch them: --data {place}")
    return place


def evaluate_run(run: Path, *, data: Where | None, split: str) -> dict[str, Any]:
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
        "run": str(run),
        "step": trained.step,
        "data": info.name,
        "generation": info.generation,
        "split": split,
        "samples": len(result.labels),
        "metrics": result.metrics(),
    }
