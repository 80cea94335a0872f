"""Trainings side by side without a search: a config per name, over seeds, each evaluated once on the test split.

Each is a Ray task that drives one training (`cluster.experiments.drivers`); a restart continues what was begun and
repeats nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import ray

from cluster.experiments.connection import Connection
from cluster.experiments.drivers import CellRun, drive_cell, evaluate_ensemble_of
from cluster.ray_runtime.patience import LOOK_SECONDS, Patience
from cluster.search.trial_records import or_nan, read_json
from data_shards.durable import replace_file
from data_shards.places import Place
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.documents import TEST_RESULT, encode
from dmd.inference.ensemble import FEWEST

Item = TypeVar("Item")
ENSEMBLE_RESULTS = {"valid": "valid.json", "test": TEST_RESULT}
"""By split, the file of a name's ensemble."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of an experiment."""

    name: str
    """Its config's name: `preset`, an ablation, the best trial's number."""
    seed: int
    config: Config
    run: Path

    def to_drive(self) -> CellRun:
        """What its driver gets."""
        return CellRun(
            title=f"{self.name}-{self.seed}",
            config=config_to_dict(self.config),
            run=self.run,
            result=self.run / TEST_RESULT,
        )


def make_cells(configs: Mapping[str, Config], seeds: Sequence[int], out: Path) -> list[Cell]:
    """Every config with every seed."""
    return [
        Cell(
            name=name,
            seed=seed,
            config=replace(config, train=replace(config.train, seed=seed)),
            run=out / name / f"seed_{seed}",
        )
        for name, config in configs.items()
        for seed in seeds
    ]


def run_cells(cells: Sequence[Cell], connection: Connection, data: Place) -> list[dict[str, Any]]:
    """Train and evaluate every cell, as many at a time as the connection says.

    Args:
        connection: the data of its trials are the shards without the test split.
        data: the whole shards.

    Returns:
        {"name", "seed", "metrics"} or {"name", "seed", "error"} per cell, in their order.

    Raises:
        Unavailable: the cluster has had no room for any of them for too long.
    """
    waiting = [cell for cell in cells if not (cell.run / TEST_RESULT).exists()]
    if not waiting:
        print(f"all {len(cells)} trainings have ended before; none is run again", flush=True)
    errors: dict[Path, str] = {}

    def start(cell: Cell) -> "ray.ObjectRef[Any]":
        return drive_cell.remote(cell.to_drive(), connection.trial, data)

    for cell, failure, error in _side_by_side(waiting, start, connection):
        failure = error if error is not None else failure
        if failure is not None:
            errors[cell.run] = failure
        print(f"{cell.name} seed {cell.seed}: {'failed: ' + failure if failure else 'done'}", flush=True)
    return [_result(cell, errors.get(cell.run)) for cell in cells]


def _side_by_side(
    waiting: Sequence[Item], start: Callable[[Item], "ray.ObjectRef[Any]"], connection: Connection
) -> Iterator[tuple[Item, Any, str | None]]:
    """Start a task of Ray's for each item, as many at a time as the connection says; what each has returned, and why it
    failed, as they end.

    Raises:
        Unavailable: the cluster has had no room for any of them for too long.
    """
    items = list(waiting)
    patience = Patience(connection.patience)
    running: dict[ray.ObjectRef[Any], Item] = {}
    while items or running:
        while items and len(running) < connection.concurrent:
            item = items.pop(0)
            running[start(item)] = item
        ready, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
        patience.look()
        for ended in ready:
            item = running.pop(ended)
            try:
                yield item, ray.get(ended), None
            except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
                yield item, None, str(error).strip().splitlines()[-1]


def run_ensembles(
    cells: Sequence[Cell], results: Sequence[Mapping[str, Any]], connection: Connection, data: Place, out: Path
) -> dict[str, dict[str, Any]]:
    """Evaluate the ensemble of the seeds of each name that has several, on the validation and the test split, and write
    it into OUT/NAME/valid.json and test.json, where it is read again when nothing has changed; as many names at a time
    as the connection says.

    Args:
        results: of the cells, as `run_cells` gives them; those that failed are left out.
        data: the whole shards.

    Returns:
        {name: {split: what `dmd evaluate RUN RUN ... --json` writes}}; {name: {"error": why}} of one that failed.

    Raises:
        Unavailable: as `run_cells`.
    """
    found: dict[str, dict[str, Any]] = {}
    waiting: dict[str, list[Path]] = {}
    for name in dict.fromkeys(cell.name for cell in cells):
        runs = [
            cell.run for cell, result in zip(cells, results, strict=True) if cell.name == name and "error" not in result
        ]
        if len(runs) < FEWEST:
            continue
        found[name] = {
            split: read_json(out / name / file)
            for split, file in ENSEMBLE_RESULTS.items()
            if (out / name / file).exists()
        }
        if not are_of_runs(found[name], runs):
            waiting[name] = runs

    def start(name: str) -> "ray.ObjectRef[Any]":
        return evaluate_ensemble_of(waiting[name], data, list(ENSEMBLE_RESULTS), connection.trial.size)

    for name, results_by_split, error in _side_by_side(list(waiting), start, connection):
        found[name] = results_by_split if error is None else {"error": error}
        if error is None:
            for split, file in ENSEMBLE_RESULTS.items():
                replace_file(out / name / file, encode(results_by_split[split], indent=1))
    return found


def are_of_runs(found: Mapping[str, Mapping[str, Any]], runs: Sequence[Path]) -> bool:
    """Whether results of an ensemble, by split, are all there and of what the test results of its runs are of: the same
    checkpoints and data."""
    tested = [(run, read_json(run / TEST_RESULT)) for run in runs]
    wanted = [(str(run), result.get("step"), result.get("generation")) for run, result in tested]
    return found.keys() == ENSEMBLE_RESULTS.keys() and all(
        [(member.get("run"), member.get("step"), result.get("generation")) for member in result.get("members", [])]
        == wanted
        for result in found.values()
    )


def _result(cell: Cell, error: str | None) -> dict[str, Any]:
    about = {"name": cell.name, "seed": cell.seed}
    if error is not None:
        return {**about, "error": error}
    fused = read_json(cell.run / TEST_RESULT)["metrics"]["fused"]
    return {**about, "metrics": {name: or_nan(value) for name, value in fused.items()}}
