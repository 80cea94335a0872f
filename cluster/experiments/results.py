"""Tables of an experiment, as CSV and Markdown."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.search.live_table import short
from cluster.search.space import apply
from cluster.search.trial_records import TrialRecord, TrialRecords, or_nan
from data_shards.durable import replace_file
from dmd.config import Config
from dmd.config.loading import config_to_dict
from dmd.metrics import headings_of, loss_title, metric, shown, unit_note
from dmd.report.statistics import summarise

Row = dict[str, Any]


def write_table(path: Path, rows: Sequence[Row], *, note: str = "") -> None:
    """Write rows of equal keys to `path` as CSV, empty where a number is not finite, and beside it as Markdown with a
    note below."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()})
    replace_file(path, text.getvalue().encode())
    replace_file(path.with_suffix(".md"), f"{markdown(rows)}\n{note}\n".encode())


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    for row in rows:
        lines.append("| " + " | ".join(_cell(key, value) for key, value in row.items()) + " |")
    return "\n".join(lines) + "\n"


def _cell(key: str, value: object) -> str:
    """A number with four decimals, per cent with two; nothing for one that is not there."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{2 if key.endswith('%') else 4}f}" if math.isfinite(value) else "–"


def write_trials(trials: TrialRecords, experiment: Path, base: Config) -> None:
    """trials.csv and trials.md, best first."""
    ordered = sorted(trials.records.values(), key=lambda record: (record.best_loss, record.number))
    keys = list(dict.fromkeys(key for record in ordered for key in record.values))
    names = {name: None for record in ordered for name in record.metrics}
    titles = {name: f"valid {text}" for name, text in headings_of(names).items() if not metric(name).is_loss}
    rows = [
        {
            "trial": record.number,
            "state": record.state,
            "epochs": record.epoch,
            f"best valid {loss_title(base.model.task)}": record.best_loss,
            **{text: shown(name, record.metrics.get(name, math.nan)) for name, text in titles.items()},
            **{key: short(record.values.get(key, "")) for key in keys},
        }
        for record in ordered
    ]
    if rows:
        note = f"Of each trial's best checkpoint, on the valid split. {unit_note(names)}" if names else ""
        write_table(experiment / "trials.csv", rows, note=note)


def write_best(best: TrialRecord, num_trials: int, experiment: Path, base: Config) -> None:
    """best.yaml, the whole config of the best of all trials for `dmd train --preset`; of a finished search only."""
    content = yaml.safe_dump(config_to_dict(apply(base, best.values)), sort_keys=False)
    loss = f"{loss_title(base.model.task)} {best.best_loss:.4f}"
    header = f"# Trial {best.number}: validation {loss}, the lowest of {num_trials} trials.\n"
    replace_file(experiment / "best.yaml", (header + content).encode())


def note_of(results: Sequence[Row]) -> str:
    """What stands below the table of seeds."""
    return (
        "By each seed's checkpoint of the best validation loss; an ensemble is the mean of its seeds' predictions. "
        f"{unit_note(results[0]['metrics'])}"
    )


def seed_rows(results: Iterable[Row], ensembles: Mapping[str, Mapping[str, Any]] | None = None) -> list[Row]:
    """Rows of the test split and, of a name with an ensemble, of the validation split: one per seed and, below them,
    mean, standard deviation, half a 95 % interval and the ensemble, in the units of the headings.

    Args:
        results: rows with `name`, `seed` and `metrics` (the fused head's on the test split, by name).
        ensembles: by name {split: what `dmd.evaluation.ensemble.describe_ensemble` says}, of the seeds of a name that
            has several, in the order of the results.
    """
    results = list(results)
    rows: list[Row] = []
    for name in dict.fromkeys(result["name"] for result in results):
        own = [result for result in results if result["name"] == name]
        seeds, of_splits = [result["seed"] for result in own], (ensembles or {}).get(name, {})
        rows += _rows_of_split(name, "test", seeds, [result["metrics"] for result in own], of_splits.get("test"))
        if "valid" in of_splits:
            valid = of_splits["valid"]
            metrics = [_numbers(member["metrics"]["fused"]) for member in valid["members"]]
            rows += _rows_of_split(name, "valid", seeds, metrics, valid)
    return rows


def _rows_of_split(
    name: str,
    split: str,
    seeds: Sequence[int],
    metrics: Sequence[Mapping[str, float]],
    ensemble: Mapping[str, Any] | None,
) -> list[Row]:
    """The rows of one name on one split, of whose seeds those are the metrics."""
    rows = [_row(name, split, seed, one) for seed, one in zip(seeds, metrics, strict=True)]
    over_seeds = {key: summarise([one[key] for one in metrics]) for key in metrics[0]}
    rows.append(_row(name, split, "mean", {key: summary.mean for key, summary in over_seeds.items()}))
    rows.append(_row(name, split, "std", {key: summary.std for key, summary in over_seeds.items()}))
    rows.append(_row(name, split, "95 % +-", {key: summary.half_width for key, summary in over_seeds.items()}))
    if ensemble is not None:
        whole = _numbers(ensemble["metrics"]["fused"])
        rows.append(_row(name, split, f"ensemble of {len(seeds)} seeds", whole))
    return rows


def _numbers(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics of JSON, which has null for a number that is not finite."""
    return {name: or_nan(value) for name, value in metrics.items()}


def _row(name: str, split: str, seed: object, metrics: Mapping[str, float]) -> Row:
    cells = {text: shown(key, metrics[key]) for key, text in headings_of(metrics).items()}
    return {"name": name, "seed": seed, "split": split, **cells}
