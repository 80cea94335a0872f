"""What Ray Train runs on every rank of a trial: the same training as the launcher's, reporting after each epoch.

Ray Train has prepared the rank's environment (`cluster.ray_runtime.process_group`). The truth for a resume is
RUN/checkpoints on the shared storage, never what Ray remembers: after a restart every rank looks there for the newest
whole checkpoint.

A trial's driver and controller read this module, too, and only wait: torch and what needs it are imported on a rank.
"""

import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
from ray._private.ray_constants import LOG_PREFIX_ACTOR_NAME
from ray.train.v2._internal.execution import context as train_context
from ray.util.metrics import Gauge

from cluster.ray_runtime.process_group import RESUME
from cluster.ray_runtime.rank_endings import RankEnded
from cluster.ray_runtime.stop_flag import watching
from data_shards.places import Place
from dmd.distributed.errors import Diverged
from dmd.training.callbacks import Callback
from dmd.training.outcome import EpochReport

if TYPE_CHECKING:
    import torch

    from dmd.config import Config

ATTEMPTS = "trial"
"""Group of the writers to a trial's run directory. A node that lost its link goes on training for a while; its trial is
meanwhile started elsewhere. The later attempt takes the directory over, the earlier one ends at its next step."""


@dataclass(frozen=True, kw_only=True)
class RankTask:
    """What every rank of a training is given."""

    config: dict[str, Any]
    """Nested, as `dmd.config.config_to_dict` gives it."""
    data: Place
    """Absolute path, or URL, of the shards."""
    run: Path
    """Absolute path."""
    writers: str = ATTEMPTS
    """Group of the writers to the run directory."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables of trackers, keys among them."""
    stop_flag: Any = None
    """Where rank 0 looks for requests to stop (`cluster.ray_runtime.stop_flag`); None: there are none."""


def train_rank(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on this rank; settings hold a `RankTask` as `task`.

    Returns:
        {"failure": None, "stopped", "text"}: whether a stop was asked for, and the line that ends a training's output.
        Or why the training cannot go on, the same on a retry, as `failure`, and the `state` that this is: a divergence,
        or a failure (the user's mistake, nodes that were not given the same).

    Raises:
        RankEnded: any other error, with the ending that the launcher would report of it.
    """
    import torch

    from dmd.config.loading import config_from_dict
    from launch.supervision.failures import ending_of
    from launch.trainer.determinism import make_deterministic
    from launch.trainer.engine import join_process_group, leave_process_group

    task: RankTask = settings["task"]
    rank = ray.train.get_context().get_world_rank()
    os.environ.update(task.environment)
    name_in_logs(f"rank {rank} on {socket.gethostname()}")
    train_context.logger.setLevel(logging.WARNING)  # every report of every rank, at a level that `LoggingConfig` misses
    try:
        config = config_from_dict(task.config)
    except ValueError as error:
        return {"failure": str(error), "state": "failed"}
    if config.train.deterministic:
        make_deterministic(os.environ)
    try:
        device = join_process_group(timedelta(seconds=config.train.collective_timeout))
        ranks = ray.train.get_context().get_world_size()
        print(f"rank {rank} of {ranks} trains on {device} with {torch.get_num_threads()} threads", flush=True)
        outcome = _train(config, task, device, is_main_rank=rank == 0)
    except Exception as error:
        raise RankEnded(ending_of(error, rank, config, alone=True)) from None  # that of a bug has been printed
    leave_process_group()
    return outcome


def name_in_logs(name: str) -> None:
    """Let Ray put this name before what this process prints, where it shows it in the driver's log."""
    for stream in (sys.stdout, sys.stderr):
        print(f"{LOG_PREFIX_ACTOR_NAME}{name}", file=stream, flush=True)


def _train(config: "Config", task: RankTask, device: "torch.device", *, is_main_rank: bool) -> dict[str, Any]:
    """Train in a process group; what `train_rank` returns, on every rank alike."""
    from dmd.checkpoint.resume import parse_resume
    from launch.trainer.build import make_training
    from launch.trainer.host_tuning import keep_freed_memory

    if device.type == "cpu":
        keep_freed_memory()
    begin = time.perf_counter()
    watched = is_main_rank and task.stop_flag is not None
    try:
        training = make_training(
            config,
            task.data,
            task.run,
            device=device,
            resume=parse_resume(os.environ[RESUME]),
            stop_requested=watching(task.stop_flag) if watched else lambda: False,
            callbacks=[ExportingReporter(task.run) if is_main_rank else Reporter()],
            group=task.writers,
        )
    except ValueError as error:
        return {"failure": str(error), "state": "failed"}
    try:
        outcome = training.run()
    except Diverged as error:
        return {"failure": str(error), "state": "diverged"}
    text = outcome.text(task.run, time.perf_counter() - begin)
    return {"failure": None, "stopped": outcome.stopped, "text": text}


class Reporter(Callback):
    """Reports each epoch to Ray: a barrier, so every rank has one; numbers only, rank 0's are kept."""

    def on_epoch(self, report: EpochReport) -> None:
        """Report the validation of an epoch."""
        numbers = {f"valid/{name}": value for name, value in report.metrics.items()}
        ray.train.report(
            {
                "epoch": report.epoch,
                "step": report.step,
                "loss": report.loss,
                "best_loss": report.best_loss,
                **numbers,
            }
        )


class ExportingReporter(Reporter):
    """A `Reporter` that also sets `ray_dmd_epoch` and `ray_dmd_valid_loss` of Ray's own Prometheus exporter, by run."""

    def __init__(self, run: Path) -> None:
        self._gauges = {
            name: Gauge(f"dmd_{name}", description=text, tag_keys=("run",)).set_default_tags({"run": str(run)})
            for name, text in (("epoch", "Epochs done"), ("valid_loss", "Validation loss of the last epoch"))
        }

    def on_epoch(self, report: EpochReport) -> None:
        """Export and report the validation of an epoch."""
        self._gauges["epoch"].set(report.epoch)
        self._gauges["valid_loss"].set(report.loss)
        super().on_epoch(report)
