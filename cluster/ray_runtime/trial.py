"""One training on a Ray cluster: ranks placed and watched by Ray Train, restarted together when one is lost."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ray.train import Result
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.ray_runtime.orphans import EndWithOwner
from cluster.ray_runtime.process_group import RankEnvironment
from cluster.ray_runtime.rank_endings import RestartPolicy
from cluster.ray_runtime.resources import TrialSize
from cluster.ray_runtime.worker import RankTask, train_rank
from data_shards.places import Place

if TYPE_CHECKING:
    from dmd.checkpoint.resume import Marks, Resume

_START_SECONDS = 600
"""How long ranks may take to start before Ray Train throws them away and begins anew. Its own limit of 60 is less than
what imports take on a busy machine or a slow shared disk: the trial then starts for ever."""

_POLL_SECONDS = 0.2
"""How often Ray Train asks the ranks for news. It takes one report of each rank at a time, so no epoch can be shorter;
its own 2 s are more than an epoch of MOSI takes on a GPU."""


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """What every trial of an experiment shares."""

    data: Place
    """Absolute path, or URL, of the shards."""
    ray_storage: str
    """Absolute path where Ray keeps its own notes."""
    size: TrialSize
    max_failures: int = 3
    """Restarts from the last checkpoint after a lost rank or node."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables of trackers for the ranks, keys among them."""


@dataclass(frozen=True)
class Failure:
    """Why a training cannot go on; a retry would end the same."""

    reason: str
    state: Literal["diverged", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrainingEnd:
    """How a training ended without a failure."""

    stopped: bool
    """Whether a stop was asked for."""
    text: str
    """The line that ends a training's output."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a training of its own, not one of an experiment's, adds to its options."""

    resume: "Resume"
    before: "Marks"
    """The run's checkpoints when the command was given (`dmd.checkpoint.resume.checkpoint_marks`)."""
    writers: str
    """Group of the writers to the run directory: the ranks of this command, and those that replace them."""
    stop_flag: Any
    """See `cluster.ray_runtime.stop_flag`."""


class Trainer(DataParallelTrainer):
    """Ray Train without the process that it starts, per trial, to divide Ray's own data sets: there are none. Restarts
    follow our own policy."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            callback for callback in super()._create_default_callbacks() if not isinstance(callback, DatasetsCallback)
        ]

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Result:
        policy = RestartPolicy(self.run_config.failure_config)  # type: ignore[arg-type]  # annotated for Tune's own
        return super()._initialize_and_run_controller(**{**controller_init_kwargs, "failure_policy": policy})


def run_training(
    config: dict[str, Any],
    run: Path,
    options: TrialOptions,
    *,
    name: str,
    callbacks: list[Any] | None = None,
    command: Command | None = None,
) -> TrainingEnd | Failure:
    """Train a config in a run directory, or continue what is there; blocks until it ends.

    Args:
        config: as `dmd.config.config_to_dict` gives it, since a `Config` would bring torch to a process that waits.
        name: of this training among Ray Train's runs.
        command: of a training that is no trial.

    Returns:
        how it ended, or why it cannot go on: what the data cannot take, nodes that differ, a divergence.

    Raises:
        ray.train.TrainingFailedError: ranks were lost more often than `max_failures`, or ended over something that no
            restart mends (`cluster.ray_runtime.rank_endings`).
    """
    size, timeout = options.size, config["train"]["collective_timeout"]
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(timeout))
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(timeout))
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(_POLL_SECONDS))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # which shows what ranks print twice
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_SECONDS))
    ranks = size.max_ranks if size.min_ranks == size.max_ranks else (size.min_ranks, size.max_ranks)
    task, environment = (
        RankTask(config=config, data=options.data, run=run, environment=options.environment),
        RankEnvironment(run=run),
    )
    logging_config = None
    if command is not None:
        task = replace(task, writers=command.writers, stop_flag=command.stop_flag)
        environment = RankEnvironment(run=run, resume=command.resume, before=command.before)
        logging_config = LoggingConfig(log_level="WARNING")
    trainer = Trainer(
        train_rank,
        train_loop_config={"task": task},
        scaling_config=ScalingConfig(
            num_workers=ranks,
            use_gpu=size.gpus_per_rank > 0,
            resources_per_worker=size.per_rank,
            placement_strategy="PACK",
        ),
        backend_config=environment,
        run_config=RunConfig(  # type: ignore[arg-type]  # annotated for Tune's own
            name=name,
            storage_path=options.ray_storage,
            callbacks=[EndWithOwner(), *(callbacks or [])],  # type: ignore[list-item]  # annotated for Tune's own
            failure_config=FailureConfig(max_failures=options.max_failures),
            logging_config=logging_config,
        ),
    )
    outcome = trainer.fit().return_value  # type: ignore[attr-defined]
    assert isinstance(outcome, dict), "rank 0 returns how it ended"
    if outcome["failure"] is not None:
        return Failure(outcome["failure"], outcome["state"])
    return TrainingEnd(stopped=outcome["stopped"], text=outcome["text"])
