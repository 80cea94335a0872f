"""The table of a list of runs, as text, CSV or JSON."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from dmd.documents import encode
from dmd.metrics import headings_of, shown, unit_note
from dmd.runs.columns import Column, metric_column, table_columns
from dmd.runs.summary import RunSummary
from dmd.text_tables import GAP, table_text, terminal_width, width_of

_FEWEST_COLUMNS = 3
"""Columns that a table keeps however narrow the terminal is."""


def listing(runs: Sequence[RunSummary], *, sorted_by: Column | None = None) -> str:
    """The table of runs and what it says below: whose validation the metrics are, their protocol, what did not fit.

    Args:
        sorted_by: its column is shown too.
    """
    columns = table_columns(runs)
    if sorted_by is not None and sorted_by.key not in [column.key for column in columns]:
        columns.insert(2, sorted_by)
    shown = _fitting(columns, runs, first=None if sorted_by is None else sorted_by.key)
    rows = [[column.cell(run) for column in shown] for run in runs]
    numbers = [number for number, column in enumerate(shown) if column.is_number]
    left_out = [column for column in columns if column not in shown]
    notes = [note for note in (_note(runs), _note_of_width(left_out)) if note]
    return table_text([column.heading for column in shown], rows, numbers=numbers, notes=notes)


def _fitting(columns: list[Column], runs: Sequence[RunSummary], *, first: str | None) -> list[Column]:
    """The columns that fit the terminal without breaking a word: first of all those that name a run, what the table is
    sorted by and the validation, and last those that say how long it took."""
    by_worth = sorted(columns, key=lambda column: (column.key not in ("run", "state", first), column.worth))
    room, kept = terminal_width() + GAP, list[str]()
    for column in by_worth:
        room -= width_of(column.heading, [column.cell(run) for run in runs], is_number=column.is_number).least + GAP
        if room >= 0 or len(kept) < _FEWEST_COLUMNS:
            kept.append(column.key)
    return [column for column in columns if column.key in kept]


def _note(runs: Sequence[RunSummary]) -> str:
    """What the metrics are."""
    measured = [run for run in runs if run.best is not None and run.best.metrics]
    if not measured:
        return ""
    names = {run.protocol: list(run.best.metrics) for run in measured if run.best is not None}
    notes = " ".join(unit_note(of) for of in names.values())
    return f"Of the best checkpoint of each run, on the valid split, fused prediction. {notes}"


def _note_of_width(left_out: Sequence[Column]) -> str:
    if not left_out:
        return ""
    names = ", ".join(column.heading for column in left_out)
    return f"Not shown, for the width of the terminal: {names}. --csv and --json have all."


def listing_csv(runs: Sequence[RunSummary]) -> str:
    """All columns of the table and all metrics as CSV, in the units of the headings, with a column for the split."""
    columns = table_columns(runs)
    names = headings_of({name for run in runs if run.best for name in run.best.metrics})
    there = {column.key for column in columns}
    columns += [metric_column(name) for name in names if name not in there]
    rows = [[_plain(column, run) for column in columns] for run in runs]
    return to_csv([*(column.heading for column in columns), "split"], [[*row, "valid"] for row in rows])


def to_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _plain(column: Column, run: RunSummary) -> object:
    """A value for a CSV file: metrics in the unit of their heading and in full, times in seconds and in ISO 8601."""
    value = column.value(run)
    if value is None:
        return ""
    if column.key in run_metrics(run):
        return shown(column.key, value)
    if isinstance(value, tuple):
        return " ".join(value)
    return value.isoformat() if hasattr(value, "isoformat") else value


def run_metrics(run: RunSummary) -> dict[str, float]:
    """The metrics of a run's best validation."""
    return {} if run.best is None else run.best.metrics


def listing_json(runs: Sequence[RunSummary]) -> str:
    """Everything that is known of runs as JSON; Acc and F1 are shares in [0, 1]."""
    return encode([as_object(run) for run in runs], indent=1).decode()


def as_object(run: RunSummary) -> dict[str, Any]:
    """A run as JSON has it."""
    best = run.best
    return {
        "run": str(run.path),
        "state": run.state,
        "tags": list(run.tags),
        "preset": run.preset or None,
        "data": run.data,
        "generation": run.info.get("generation"),
        "seed": run.seed,
        "epochs": run.epochs,
        "steps": run.step,
        "best": None
        if best is None
        else {
            "split": "valid",
            "protocol": run.protocol,
            "step": best.step,
            "loss": best.loss,
            "metrics": best.metrics,
            "checkpoint": best.kept,
        },
        "seconds": run.seconds,
        "seconds_of_all_sessions": run.seconds_are_all,
        "started": None if run.started is None else run.started.isoformat(),
        "config": run.config,
        "versions": run.session.get("versions", {}),
        "commit": run.session.get("git_commit"),
        "host": run.session.get("host"),
    }
