"""Trainings side by side without a search: a config per name, over seeds, each evaluated once on the test split.

Each is a Ray task that drives one training (`cluster.experiments.drivers`); a restart continues what was begun and
repeats nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
    patience = Patience(connection.patience)
    running: dict[ray.ObjectRef[Any], Cell] = {}
    errors: dict[Path, str] = {}
    while waiting or running:
        while waiting and len(running) < connection.concurrent:
            cell = waiting.pop(0)
            running[drive_cell.remote(cell.to_drive(), connection.trial, data)] = cell
        ready, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
        patience.look()
        if not ready:
            continue
        cell = running.pop(ready[0])
        try:
            failure = ray.get(ready[0])
        except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
            failure = str(error).strip().splitlines()[-1]
        if failure is not None:
            errors[cell.run] = failure
        print(f"{cell.name} seed {cell.seed}: {'failed: ' + failure if failure else 'done'}", flush=True)
    return [_result(cell, errors.get(cell.run)) for cell in cells]


def run_ensembles(
    cells: Sequence[Cell], results: Sequence[Mapping[str, Any]], connection: Connection, data: Place, out: Path
) -> dict[str, dict[str, Any]]:
    """Evaluate the ensemble of the seeds of each name that has several, on the validation and the test split, and write
    it into OUT/NAME/valid.json and test.json, where it is read again when nothing has changed.

    Args:
        results: of the cells, as `run_cells` gives them; those that failed are left out.
        data: the whole shards.

    Returns:
        {name: {split: what `dmd evaluate RUN RUN ... --json` writes}}; {name: {"error": why}} of one that failed.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(cell.name for cell in cells):
        runs = [
            cell.run for cell, result in zip(cells, results, strict=True) if cell.name == name and "error" not in result
        ]
        if len(runs) < FEWEST:
            continue
        files = {split: out / name / file for split, file in ENSEMBLE_RESULTS.items()}
        before = {split: read_json(path) for split, path in files.items() if path.exists()}
        if before.keys() != files.keys() or any(one.get("runs") != list(map(str, runs)) for one in before.values()):
            try:
                before = evaluate_ensemble_of(runs, data, list(files), connection.trial.size)
            except ray.exceptions.RayError as error:
                found[name] = {"error": str(error).strip().splitlines()[-1]}
                continue
            for split, path in files.items():
                replace_file(path, encode(before[split], indent=1))
        found[name] = before
    return found


def _result(cell: Cell, error: str | None) -> dict[str, Any]:
    about = {"name": cell.name, "seed": cell.seed}
    if error is not None:
        return {**about, "error": error}
    fused = read_json(cell.run / TEST_RESULT)["metrics"]["fused"]
    return {**about, "metrics": {name: or_nan(value) for name, value in fused.items()}}
