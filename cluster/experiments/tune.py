"""The search: Ray Tune starts a driver per trial, the driver starts Ray Train, that starts the ranks.

    dmd tune --preset mosi-aligned --data SHARDS --out EXPERIMENT --space cluster/spaces/mosi.yaml --trials 40

A restart continues from the trial records (`cluster.search.trial_records`); Ray's notes in EXPERIMENT/ray are for its
own use.
"""

import time
import uuid
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from cluster.experiments.connection import Connection
from cluster.experiments.drivers import drive_trial
from cluster.ray_runtime.patience import Patience
from cluster.ray_runtime.resources import DRIVER_MEMORY
from cluster.ray_runtime.session import num_ranks
from cluster.request import SearchRequest
from cluster.search.asha import Asha
from cluster.search.live_table import LiveTable
from cluster.search.recorded_search import RecordedSearch
from cluster.search.trial_records import TrialRecord, TrialRecords
from dmd.config import Config
from dmd.config.loading import config_to_dict

_END_SECONDS = 60
"""Time that the ranks of a stopped trial have to end before its record is written as it is."""
_LOOK_SECONDS = 2


class Bookkeeper(tune.Callback):
    """Writes what trials report into their records, and shows it."""

    def __init__(self, trials: TrialRecords, table: LiveTable, patience: Patience) -> None:
        self._trials = trials
        self._table = table
        self._patience = patience

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Several times a second, whatever happens."""
        self._patience.look()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch of a trial, or why its training cannot go on."""
        record = self._record(trial)
        if "epoch" in result:
            metrics = {k.partition("/")[2]: float(v) for k, v in result.items() if k.startswith("valid/")}
            record.note(int(result["epoch"]), float(result["best_loss"]), metrics)
        if "failure" in result:
            record.state, record.reason = result["state"], result["failure"]
        self._keep(record)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The end of a trial, which the searcher has put on record."""
        self._keep(self._record(trial))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A driver that died more often than it may."""
        record = self._record(trial)
        record.state, record.reason = "failed", f"its driver died; see {trial.error_file}"
        self._keep(record)

    def _record(self, trial: Trial) -> TrialRecord:
        return self._trials.records[trial.config["number"]]

    def _keep(self, record: TrialRecord) -> None:
        self._trials.write(record)
        self._table.show(list(self._trials.records.values()), record)


def search(
    base: Config, experiment: Path, trials: TrialRecords, request: SearchRequest, connection: Connection
) -> None:
    """Run the trials that are not done; their records then say where their runs end, and which have not.

    Raises:
        Unavailable: the cluster has had no room for any trial for too long.
    """
    trials.reconcile()
    searcher = RecordedSearch(trials, request.strategy(), request.num_trials)
    scheduler: TrialScheduler = FIFOScheduler()  # type: ignore[no-untyped-call]
    if request.scheduler == "asha":
        scheduler = Asha(trials, epochs=base.train.epochs, grace=request.grace, reduction=request.reduction)
    if searcher.num_left == 0:
        print(f"all {len(trials.records)} trials of {experiment} have ended before; none is run again", flush=True)
        return
    table = LiveTable(request.num_trials, base.train.epochs)
    driver = tune.with_parameters(
        drive_trial, base=config_to_dict(base), options=connection.trial, runs=str(trials.root)
    )
    driver = tune.with_resources(driver, tune.PlacementGroupFactory([{"memory": DRIVER_MEMORY}]))
    tune.Tuner(
        driver,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=searcher.num_left,
            max_concurrent_trials=connection.concurrent,
            trial_dirname_creator=_directory,
            trial_name_creator=_directory,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{uuid.uuid4().hex[:8]}",
            storage_path=str(experiment / "ray"),
            verbose=0,
            callbacks=[Bookkeeper(trials, table, Patience(connection.patience))],
            failure_config=tune.FailureConfig(max_failures=connection.trial.max_failures),
        ),
    ).fit()
    wait_for_ranks(trials)
    trials.reconcile()


def wait_for_ranks(trials: TrialRecords) -> None:
    """Wait until the ranks of stopped trials have ended: Tune does not, and they may end one more epoch."""
    end, before = time.monotonic() + _END_SECONDS, None
    while (before != (now := trials.marks()) or num_ranks() > 0) and time.monotonic() < end:
        before = now
        time.sleep(_LOOK_SECONDS)


def _directory(trial: Trial) -> str:
    return f"trial-{trial.config['number']:04d}-{trial.trial_id}"
