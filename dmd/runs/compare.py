"""Two runs side by side: where their configs differ, what they reached, with which versions."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from data_shards.progress import duration
from dmd.documents import encode
from dmd.metrics import headings_of, show, unit_note
from dmd.report.identity import differing_keys, is_same, value_text
from dmd.runs.columns import ABSENT
from dmd.runs.listing import as_object, run_metrics, to_csv
from dmd.runs.summary import RunSummary
from dmd.text_tables import table_text

Row = tuple[str, str, str]
_OF_DATA = ("data_name", "generation", "counts", "dims", "lengths", "protocol")
_OF_MACHINE = ("ranks", "device", "precision", "kernels", "cuda_graph")


def comparison(first: RunSummary, second: RunSummary) -> str:
    """Both runs as a table: what differs in data, config, machine and versions, and every metric."""
    pair = (first, second)
    rows = list(_rows(pair))
    same = sum(is_same(value, second.config.get(key)) for key, value in first.config.items())
    notes = [f"{same} config values are the same in both. Metrics are of the best checkpoint, on the valid split."]
    notes += dict.fromkeys(unit_note(run_metrics(run)) for run in pair if run_metrics(run))
    return table_text(["", *(str(run.path) for run in pair)], rows, notes=[" ".join(notes)])


def comparison_csv(first: RunSummary, second: RunSummary) -> str:
    """The rows of the table as CSV."""
    return to_csv(["", str(first.path), str(second.path)], list(_rows((first, second))))


def comparison_json(first: RunSummary, second: RunSummary) -> str:
    """Both runs and the config keys in which they differ as JSON."""
    differing = differing_keys([first.config, second.config])
    content = {
        "differing": {key: [first.config.get(key), second.config.get(key)] for key in differing},
        "runs": [as_object(first), as_object(second)],
    }
    return encode(content, indent=1).decode()


def _rows(pair: Sequence[RunSummary]) -> Iterator[Row]:
    yield _row("state", [run.state for run in pair])
    yield _row("seed", [run.seed for run in pair])
    yield _row("tags", [", ".join(run.tags) or None for run in pair])
    for key in _OF_DATA:
        yield from _if_differing(key, [run.info.get(key) for run in pair])
    for key in differing_keys([run.config for run in pair]):
        yield from _if_differing(key, [run.config.get(key) for run in pair]) if key != "train.seed" else ()
    yield _row("epochs", [run.epochs for run in pair])
    yield _row("best step", [None if run.best is None else run.best.step for run in pair])
    yield _row("valid loss", [None if run.best is None else f"{run.best.loss:.4f}" for run in pair])
    found = [run_metrics(run) for run in pair]
    for name, heading in headings_of({name for of in found for name in of}).items():
        yield _row(f"valid {heading}", [show(name, of[name]) if name in of else None for of in found])
    yield _row("time", [duration(run.seconds) for run in pair])
    for key in _OF_MACHINE:
        yield from _if_differing(key, [run.info.get(key) for run in pair])
    yield from _if_differing("host", [run.session.get("host") for run in pair])
    yield from _if_differing("commit", [run.session.get("git_commit") for run in pair])
    versions = [run.session.get("versions", {}) for run in pair]
    for key in differing_keys(versions):
        yield from _if_differing(f"version of {key}", [of.get(key) for of in versions])


def _if_differing(what: str, values: Sequence[Any]) -> Iterator[Row]:
    if not is_same(values[0], values[1]):
        yield _row(what, values)


def _row(what: str, values: Sequence[Any]) -> Row:
    first, second = (ABSENT if value is None else _text(value) for value in values)
    return what, first, second


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else value_text(value)
