"""How trials get their values: random, grid, or Optuna's TPE.

A random draw depends on (seed, number) alone, a grid point on its number; TPE learns from every trial that ended before
it proposes a new one.
"""

import math
from itertools import islice
from typing import Any, Literal, Protocol

from cluster.search.space import Parameter, Space
from cluster.search.trial_records import DONE, TrialRecord
from cluster.search.values import Values

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
        self._space = space
        self._seed = seed

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
        self._space = space
        self._trials = dict[int, Any]()
        self._failed = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))

    def propose(self, number: int) -> Values:
        """What the estimator thinks best to try next."""
        trial = self._trials[number] = self._study.ask()
        return self._space.draw(lambda parameter: _suggest(trial, parameter))

    def learn(self, record: TrialRecord) -> None:
        """Give the estimator a trial's best validation loss, if it has ended."""
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
