"""How trials get their values: random, grid, or Optuna's TPE, over trial records that a restart continues.

Trial numbers are the experiment's own. A random draw depends on (seed, number) alone, a grid point on its number, and
TPE is told every recorded trial again before it proposes a new one.
"""

import math
from collections import deque
from itertools import islice
from typing import Any, Literal, Protocol, cast

from ray.tune.search import Searcher

from cluster.search.space import Parameter, Space, Values
from cluster.search.trial_records import DONE, TrialRecord, TrialRecords

Method = Literal["random", "grid", "tpe"]
_LARGEST_GRID = 10_000


class Strategy(Protocol):
    """Where the values of new trials come from."""

    def propose(self, number: int) -> Values:
        """Values of a new trial."""
        ...

    def learn(self, record: TrialRecord) -> None:
        """Take a trial into account that has ended, or one of an earlier session that will go on."""
        ...


class RandomStrategy:
    """Independent draws."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed

    def propose(self, number: int) -> Values:
        """Draw `number`."""
        return self._space.random(self._seed, number)

    def learn(self, record: TrialRecord) -> None:
        """Nothing to learn."""


class GridStrategy:
    """Every combination, once.

    Raises:
        ValueError: a continuous parameter, or more combinations than anybody trains.
    """

    def __init__(self, space: Space) -> None:
        self._points = list(islice(space.grid(), _LARGEST_GRID + 1))
        if len(self._points) > _LARGEST_GRID:
            raise ValueError(f"a grid over this space has more than {_LARGEST_GRID} points; use another --search")

    def __len__(self) -> int:
        return len(self._points)

    def propose(self, number: int) -> Values:
        """Combination `number`."""
        return self._points[number]

    def learn(self, record: TrialRecord) -> None:
        """Nothing to learn."""


class TpeStrategy:
    """Optuna's tree-structured Parzen estimator; keys with a condition are part of it (define-by-run).

    Raises:
        ValueError: Optuna is not installed.
    """

    def __init__(self, space: Space, seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ValueError(
                "--search tpe needs Optuna: pip install 'dmd-cluster[optuna]', or --search random"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space, self._trials = space, dict[int, Any]()
        self._failed = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))

    def propose(self, number: int) -> Values:
        """What the estimator thinks best to try next."""
        trial = self._trials[number] = self._study.ask()
        return self._space.draw(lambda parameter: _suggest(trial, parameter))

    def learn(self, record: TrialRecord) -> None:
        """Tell the estimator a trial's best validation loss, if it has ended."""
        if record.number not in self._trials:
            self._study.enqueue_trial(record.values)
            self.propose(record.number)
        if record.state not in DONE:
            return
        trial = self._trials[record.number]
        if math.isfinite(record.best_loss):
            self._study.tell(trial, record.best_loss)
        else:
            self._study.tell(trial, state=self._failed)


def _suggest(trial: Any, parameter: Parameter) -> Any:
    if parameter.kind == "choice":
        return trial.suggest_categorical(parameter.key, parameter.choices)
    if parameter.kind == "int":
        return trial.suggest_int(parameter.key, int(parameter.low), int(parameter.high))
    return trial.suggest_float(parameter.key, parameter.low, parameter.high, log=parameter.kind == "loguniform")


def make_strategy(method: Method, space: Space, seed: int) -> Strategy:
    """The strategy of that name.

    Raises:
        ValueError: a grid over a continuous parameter, or TPE without Optuna.
    """
    if method == "grid":
        return GridStrategy(space)
    return RandomStrategy(space, seed) if method == "random" else TpeStrategy(space, seed)


class RecordedSearch(Searcher):
    """Hands Ray Tune the trials of an experiment that are not done: begun ones first, then new ones."""

    def __init__(self, trials: TrialRecords, strategy: Strategy, num_trials: int) -> None:
        super().__init__(metric="best_loss", mode="min")
        self.trials, self._strategy = trials, strategy
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
