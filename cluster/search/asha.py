"""ASHA (asynchronous successive halving) over an experiment that may be in its second session.

Ray's scheduler gets the epochs of earlier sessions first, so that a restart stops the trials that an uninterrupted
experiment would have stopped.
"""

from types import SimpleNamespace
from typing import Any, cast

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from cluster.search.trial_records import DONE, TrialRecords


class Asha(ASHAScheduler):
    """Stops a trial at epochs `grace`, `grace * reduction`, ... unless it is in the best 1 / `reduction` so far."""

    def __init__(self, trials: TrialRecords, *, epochs: int, grace: int, reduction: float) -> None:
        super().__init__(
            time_attr="epoch",
            metric="best_loss",
            mode="min",
            max_t=epochs,
            grace_period=grace,
            reduction_factor=reduction,
            stop_last_trials=False,
        )
        self._trials = trials
        self._epochs = epochs
        for number, record in trials.records.items():
            if record.state in DONE and record.losses:
                known = cast("Trial", SimpleNamespace(trial_id=f"trial-{number}"))
                controller = cast("TuneController", None)  # ASHA asks it nothing
                super().on_trial_add(controller, known)
                for epoch, loss in record.seen_by_asha():
                    super().on_trial_result(controller, known, {"epoch": epoch, "best_loss": loss})

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Metric and mode are given at construction; Tune repeats them."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Take in a trial, and the epochs that it has behind it."""
        super().on_trial_add(tune_controller, trial)
        for epoch, loss in self._trials.records[trial.config["number"]].losses:
            super().on_trial_result(tune_controller, trial, {"epoch": epoch, "best_loss": loss})

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Continue or stop; a stop is on record before the trial ends. The last epoch ends by itself."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and result["epoch"] < self._epochs:
            record = self._trials.records[trial.config["number"]]
            record.state, record.stopped_after = "stopped", result["epoch"]
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE
