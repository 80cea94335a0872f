"""The search that Ray Tune asks for trials: a strategy's, over trial records that a restart continues.

Trial numbers are the experiment's own. A restart lets the strategy learn every recorded trial again.
"""

from collections import deque
from typing import Any, cast

from ray.tune.search import Searcher

from cluster.search.strategies import Strategy
from cluster.search.trial_records import DONE, TrialRecord, TrialRecords


class RecordedSearch(Searcher):
    """Hands Ray Tune the trials of an experiment that are not done: begun ones first, then new ones."""

    def __init__(self, trials: TrialRecords, strategy: Strategy, num_trials: int) -> None:
        super().__init__(metric="best_loss", mode="min")
        self.trials = trials
        self._strategy = strategy
        for record in trials.records.values():
            strategy.learn(record)
        begun = [number for number, record in trials.records.items() if record.state not in DONE]
        new = [number for number in range(num_trials) if number not in trials.records]
        self._queue = deque([*begun, *new])
        self._numbers: dict[str, int] = {}

    @property
    def num_left(self) -> int:
        """Trials that are still to be handed out."""
        return len(self._queue)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's number and values; Ray's FINISHED when there is none."""
        if not self._queue:
            return cast("dict[str, Any]", Searcher.FINISHED)
        number = self._queue.popleft()
        record = self.trials.records.get(number) or TrialRecord(number=number, values=self._strategy.propose(number))
        record.state, record.reason, record.ray_id, record.stopped_after = "running", "", trial_id, None
        self.trials.write(record)
        self._numbers[trial_id] = number
        return {"number": number, "values": record.values}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn from a trial's end."""
        record = self.trials.records[self._numbers[trial_id]]
        if error:
            return
        if record.state == "running":
            record.state = "finished"
            self.trials.write(record)
        self._strategy.learn(record)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the records have it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
