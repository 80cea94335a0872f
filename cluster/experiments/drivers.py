"""The processes that drive one training each: a trial of Ray Tune, or a cell of an experiment.

A driver starts Ray Train and waits. So this module imports neither torch nor the rest of a search: a driver would load
them for nothing, once per trial.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.train import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback

from cluster.ray_runtime.process_group import hide_gpus
from cluster.ray_runtime.rank_endings import ending_of_failure
from cluster.ray_runtime.resources import DRIVER_MEMORY, TrialSize
from cluster.ray_runtime.trial import Failure, TrialOptions, run_training
from cluster.search.values import with_values
from data_shards.durable import replace_file
from data_shards.places import Place
from dmd.documents import encode


@dataclass(frozen=True, kw_only=True)
class CellRun:
    """What a driver needs to know of a cell (`cluster.experiments.seed_runs.Cell`)."""

    title: str
    """For Ray Train."""
    config: dict[str, Any]
    """As `config_to_dict` gives it."""
    run: Path
    result: Path
    """Where the numbers of the test split go."""


def drive_trial(trial: dict[str, Any], *, base: dict[str, Any], options: TrialOptions, runs: str) -> None:
    """What Tune runs per trial: trains the trial's config in its run directory.

    Args:
        trial: `number` and `values`, as `cluster.search.recorded_search` suggests them.
        base: config whose values those are, as `config_to_dict` gives it.
        runs: directory of the run directories.
    """
    config = with_values(base, trial["values"])
    run = Path(runs) / f"{trial['number']:04d}"
    name = f"train-trial_id={tune.get_context().get_trial_id()}"
    try:
        end = run_training(config, run, options, name=name, callbacks=[TuneReportCallback()])  # type: ignore[no-untyped-call]
    except TrainingFailedError as error:
        end = Failure(ending_of_failure(error).message, "failed")
    if isinstance(end, Failure):
        tune.report({"failure": end.reason, "state": end.state})


@ray.remote(num_cpus=0, memory=DRIVER_MEMORY, max_retries=3)
def drive_cell(cell: CellRun, options: TrialOptions, data: Place) -> str | None:
    """Train one cell, then evaluate it with the resources of a rank; why the training failed, if it did."""
    try:
        end = run_training(cell.config, cell.run, options, name=f"train-{cell.title}-{uuid.uuid4().hex[:8]}")
    except TrainingFailedError as error:
        return ending_of_failure(error).message
    if isinstance(end, Failure):
        return end.reason
    result = ray.get(_evaluator(options.size).evaluate.remote(str(cell.run), data, options.size.gpus_per_rank > 0))
    replace_file(cell.result, encode(result, indent=1))
    return None


def evaluate_ensemble_of(
    runs: Sequence[Path], data: Place, splits: Sequence[str], size: TrialSize
) -> "ray.ObjectRef[dict[str, Any]]":
    """Begin to evaluate the ensemble of some runs with the resources of a rank; {split: result}."""
    names = [str(run) for run in runs]
    found: ray.ObjectRef[dict[str, Any]] = _evaluator(size).evaluate_ensemble.remote(
        names, data, list(splits), size.gpus_per_rank > 0
    )
    return found


def _evaluator(size: TrialSize) -> Any:
    return Evaluator.options(num_cpus=size.cpus_per_rank, num_gpus=size.gpus_per_rank).remote()  # type: ignore[attr-defined]


@ray.remote(max_restarts=3, max_task_retries=3)
class Evaluator:
    """An actor, so that `cluster.ray_runtime.session.num_ranks` sees whether an evaluation runs or waits."""

    def evaluate(self, run: str, data: Place, on_gpu: bool) -> dict[str, Any]:
        """Evaluate a run's best checkpoint on the test split."""
        if not on_gpu:
            hide_gpus()
        from dmd.evaluation.trained_run import evaluate_run

        return evaluate_run(Path(run), data=data, split="test")

    def evaluate_ensemble(self, runs: list[str], data: Place, splits: list[str], on_gpu: bool) -> dict[str, Any]:
        """Evaluate the ensemble of runs, by the best checkpoint of each, on splits; {split: result}."""
        if not on_gpu:
            hide_gpus()
        from dmd.evaluation.ensemble import evaluate_ensemble

        return evaluate_ensemble([Path(run) for run in runs], data=data, splits=splits)
