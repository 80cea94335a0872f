"""What Ray Train runs on every rank of a trial: the same training as the launcher's, reporting after each epoch.

Ray Train has prepared the rank's environment (`cluster.ray_runtime.process_group`). The truth for a resume is
RUN/checkpoints on the shared storage, never what Ray remembers: after a restart every rank looks there for the newest
whole checkpoint.

A trial's driver and controller read this module, too, and only wait: torch and what needs it are imported on a rank.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray.util.metrics import Gauge

from dmd.distributed.errors import Diverged
from dmd.training.outcome import EpochReport

if TYPE_CHECKING:
    import torch

    from dmd.config import Config

ATTEMPTS = "trial"
"""Group of the writers to a trial's run directory. A node that lost its link goes on training for a while; its trial is
meanwhile started elsewhere. The later attempt takes the directory over, the earlier one ends at its next step."""


def train_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on this rank; settings are `config` (nested), `data` and `run`, absolute paths.

    Returns:
        {"failure": None}, or why the training cannot go on, the same on a retry, and the `state` that this is: a
        divergence, or a failure (the user's mistake, nodes that were not given the same).

    Raises:
        RuntimeError: a rank is gone: Ray starts all ranks again.
        ValueError: a damaged shard, which one rank alone may see; or a later attempt has taken the run directory over.
    """
    from dmd.config.loading import config_from_dict
    from launch.trainer.determinism import make_deterministic
    from launch.trainer.engine import join_process_group, leave_process_group

    try:
        config = config_from_dict(settings["config"])
    except ValueError as error:
        return {"failure": str(error), "state": "failed"}
    if config.train.deterministic:
        make_deterministic(os.environ)
    device = join_process_group(timedelta(seconds=config.train.collective_timeout))
    outcome = _train(config, settings["data"], Path(settings["run"]), device)
    leave_process_group()
    return outcome


def _train(config: "Config", data: str, run: Path, device: "torch.device") -> dict[str, Any]:
    """Train in a process group; what `train_rank` returns, on every rank alike."""
    from launch.trainer.build import make_training

    is_main_rank = ray.train.get_context().get_world_rank() == 0
    on_epoch = exporting(run) if is_main_rank else report
    try:
        training = make_training(config, data, run, device=device, on_epoch=on_epoch, group=ATTEMPTS)
    except ValueError as error:
        return {"failure": str(error), "state": "failed"}
    try:
        training.run()
    except Diverged as error:
        return {"failure": str(error), "state": "diverged"}
    return {"failure": None}


def exporting(run: Path) -> Callable[[EpochReport], None]:
    """`report` that also sets `ray_dmd_epoch` and `ray_dmd_valid_loss` of Ray's own Prometheus exporter, by run."""
    gauges = {
        name: Gauge(f"dmd_{name}", description=text, tag_keys=("run",)).set_default_tags({"run": str(run)})
        for name, text in (("epoch", "Epochs done"), ("valid_loss", "Validation loss of the last epoch"))
    }

    def on_epoch(epoch: EpochReport) -> None:
        gauges["epoch"].set(epoch.epoch)
        gauges["valid_loss"].set(epoch.loss)
        report(epoch)

    return on_epoch


def report(epoch: EpochReport) -> None:
    """Report an epoch to Ray: a barrier, so every rank calls it; numbers only, rank 0's are kept."""
    numbers = {f"valid/{name}": value for name, value in epoch.metrics.items()}
    ray.train.report(
        {
            "epoch": epoch.epoch,
            "step": epoch.step,
            "loss": epoch.loss,
            "best_loss": epoch.best_loss,
            **numbers,
        }
    )
