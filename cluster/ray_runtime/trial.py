"""One training on a Ray cluster: ranks placed and watched by Ray Train, restarted together when one is lost."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.ray_runtime.orphans import EndWithJob
from cluster.ray_runtime.process_group import RankEnvironment
from cluster.ray_runtime.resources import TrialSize
from cluster.ray_runtime.worker import train_rank

_START_SECONDS = 600
"""How long ranks may take to start before Ray Train throws them away and begins anew. Its own limit of 60 is less than
what imports take on a busy machine or a slow shared disk: the trial then starts for ever."""


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """What every trial of an experiment shares."""

    data: str
    """Absolute path of the shards."""
    ray_storage: str
    """Absolute path where Ray keeps its own notes."""
    size: TrialSize
    max_failures: int = 3
    """Restarts from the last checkpoint after a lost rank or node."""


@dataclass(frozen=True)
class Failure:
    """Why a training cannot go on; a retry would end the same."""

    reason: str
    state: Literal["diverged", "failed"]


class Trainer(DataParallelTrainer):
    """Ray Train without the process that it starts, per trial, to divide Ray's own data sets: there are none."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [
            callback for callback in super()._create_default_callbacks() if not isinstance(callback, DatasetsCallback)
        ]


def run_training(
    config: dict[str, Any], run: Path, options: TrialOptions, *, name: str, callbacks: list[Any] | None = None
) -> Failure | None:
    """Train a config in a run directory, or continue what is there; blocks until it ends.

    Args:
        config: as `dmd.config.config_to_dict` gives it, since a `Config` would bring torch to a process that waits.
        name: of this training among Ray Train's runs.

    Returns:
        None, or why the training cannot go on: what the data cannot take, nodes that differ, a divergence.

    Raises:
        ray.train.TrainingFailedError: ranks were lost more often than `max_failures`.
    """
    size, timeout = options.size, config["train"]["collective_timeout"]
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(timeout))
    os.environ.setdefault("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", str(timeout))
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_START_SECONDS))
    ranks = size.max_ranks if size.min_ranks == size.max_ranks else (size.min_ranks, size.max_ranks)
    trainer = Trainer(
        train_rank,
        train_loop_config={"config": config, "data": options.data, "run": str(run)},
        scaling_config=ScalingConfig(
            num_workers=ranks,  # type: ignore[arg-type]  # nor does it know elastic ranks
            use_gpu=size.gpus_per_rank > 0,
            resources_per_worker=size.per_rank,
            placement_strategy="PACK",
        ),
        backend_config=RankEnvironment(),
        run_config=RunConfig(
            name=name,
            storage_path=options.ray_storage,
            callbacks=[EndWithJob(), *(callbacks or [])],  # type: ignore[list-item]  # annotated for Tune's own
            failure_config=FailureConfig(max_failures=options.max_failures),
        ),
    )
    outcome = trainer.fit().return_value  # type: ignore[attr-defined]
    assert isinstance(outcome, dict), "rank 0 returns how it ended"
    return None if outcome["failure"] is None else Failure(outcome["failure"], outcome["state"])
