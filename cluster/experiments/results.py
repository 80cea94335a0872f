"""Tables of an experiment, as CSV and Markdown."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.search.live_table import short
from cluster.search.space import apply
from cluster.search.trial_records import TrialRecord, TrialRecords
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
    return f"On the test split, by the checkpoint of the best validation loss. {unit_note(results[0]['metrics'])}"


def seed_rows(results: Iterable[Row]) -> list[Row]:
    """One row per seed and three rows per name below them: mean, standard deviation, half a 95 % interval, in the units
    of the headings.

    Args:
        results: rows with `name`, `seed` and `metrics` (the fused head's, by name).
    """
    results = list(results)
    rows: list[Row] = []
    for name in dict.fromkeys(result["name"] for result in results):
        own = [result for result in results if result["name"] == name]
        rows += [_row(name, result["seed"], result["metrics"]) for result in own]
        over_seeds = {key: summarise([result["metrics"][key] for result in own]) for key in own[0]["metrics"]}
        rows.append(_row(name, "mean", {key: summary.mean for key, summary in over_seeds.items()}))
        rows.append(_row(name, "std", {key: summary.std for key, summary in over_seeds.items()}))
        rows.append(_row(name, "95 % +-", {key: summary.half_width for key, summary in over_seeds.items()}))
    return rows


def _row(name: str, seed: object, metrics: dict[str, float]) -> Row:
    cells = {text: shown(key, metrics[key]) for key, text in headings_of(metrics).items()}
    return {"name": name, "seed": seed, "split": "test", **cells}
