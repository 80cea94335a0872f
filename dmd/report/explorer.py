"""The samples of a report, for the page to sort, search and filter: columns of numbers as JSON, and the worst in a
table for a reader without JavaScript.

Numbers are whole: a value times ten to the digits that are shown. Names that repeat (classes, speakers) are places in a
list. Samples that several configs share are there once. `page.js` reads it:

    {"sets": [{"columns": [COLUMN, ...], "speakers": FILTER, "classes": FILTER}],
     "configs": [{"name": ..., "full": ..., "seeds": ..., "set": 0, "columns": [COLUMN, ...]}]}
    COLUMN: {"title": ..., "of": "sample" | "main" | "heads" | "edges", "digits": 2, "values": [...]}, with "names"
    where values are places in that list, and without "digits" where they are texts
    FILTER: {"title": ..., "names": [...], "values": [...]}, of each sample one place or several
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from dmd.model.graph import PAIRS
from dmd.report.groups import Group, shown_together
from dmd.report.inference import SplitResult
from dmd.report.predictions import fine_classes
from dmd.report.sample_errors import videos_of
from dmd.report.tables import Table

WORST = 20
"""Samples of the table that needs no JavaScript."""
BUDGET = 1_500_000
"""Numbers of heads and edges in a page, some 6 MB."""
PROBABILITY_DIGITS = 3
_SHORT_RANGE = 2.0
"""Of sentiments; those of a shorter one get as many digits as probabilities."""
_SPACE = {"homo": "common", "hetero": "private"}

Column = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """What the page has of samples."""

    data: dict[str, Any]
    worst: Table
    """Of the first config."""
    left_out: tuple[str, ...]
    """Configs without heads and edges, which would make the page too large."""

    @cached_property
    def json(self) -> Markup:
        """The data as a script element holds it: no text of a sample can end the element."""
        text = json.dumps(self.data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        for character, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
            text = text.replace(character, escaped)
        return Markup(text)


def explorer(groups: Sequence[Group]) -> Explorer:
    """The samples of all configs, each with the ensemble of its seeds."""
    first_in = {group.name for group in shown_together(groups)}
    in_order = sorted(range(len(groups)), key=lambda number: groups[number].name not in first_in)
    sets: list[dict[str, Any]] = []
    places: dict[str, int] = {}
    configs: dict[int, dict[str, Any]] = {}
    left_out = []
    budget = BUDGET
    worst: Table | None = None
    for number in in_order:
        group = groups[number]
        result = group.ensemble
        key = json.dumps([result.ids, result.labels.tolist()])
        if key not in places:
            places[key] = len(sets)
            sets.append(_sample_set(result))
        columns, further = main_columns(result), further_columns(result)
        numbers = sum(len(column["values"]) for column in further)
        if numbers > budget:
            left_out.append(group.name)
            further = []
        budget -= sum(len(column["values"]) for column in further)
        configs[number] = {
            "name": group.name,
            "full": group.full,
            "seeds": group.seeds,
            "set": places[key],
            "columns": columns + further,
        }
        if number == 0:
            worst = _worst(sets[places[key]]["columns"] + columns, group, result)
    assert worst is not None
    data = {"sets": sets, "configs": [configs[number] for number in range(len(groups))]}
    return Explorer(data=data, worst=worst, left_out=tuple(left_out))


def _sample_set(result: SplitResult) -> dict[str, Any]:
    label = _label_column(result)
    columns = [_texts("id", result.ids, of="sample")]
    if any(result.texts):
        columns.append(_texts("text", list(result.texts), of="sample"))
    found: dict[str, Any] = {"columns": [*columns, label], "classes": _class_filter(result)}
    videos = videos_of(result.ids)
    if videos:
        names = sorted(set(videos))
        place = {name: number for number, name in enumerate(names)}
        found["speakers"] = {"title": "video", "names": names, "values": [[place[video]] for video in videos]}
    return found


def _class_filter(result: SplitResult) -> dict[str, Any]:
    scoring = result.scoring
    if scoring.kind == "multilabel":
        values = [np.flatnonzero(row > 0).tolist() for row in result.labels]
        return {"title": "emotion", "names": scoring.titles, "values": values}
    numbers = result.labels.astype(int) if scoring.kind == "classes" else fine_classes(result.labels, scoring)
    names = scoring.titles if scoring.kind == "classes" else scoring.fine_classes
    return {"title": "true class", "names": names, "values": [[number] for number in numbers.tolist()]}


def _label_column(result: SplitResult) -> Column:
    scoring = result.scoring
    if scoring.kind == "regression":
        return _numbers("label", result.labels, digits_of(result), of="sample")
    if scoring.kind == "classes":
        return _named("label", result.labels.astype(int), scoring.titles, of="sample")
    return _texts("label", _emotions(result.labels > 0, scoring.titles), of="sample")


def main_columns(result: SplitResult) -> list[Column]:
    """Prediction, error, and spread where there is one."""
    scoring, probabilities = result.scoring, result.probabilities
    if scoring.kind == "regression":
        digits = digits_of(result)
        columns = [
            _numbers("prediction", result.answers, digits),
            _numbers("error", np.abs(result.answers - result.labels), digits),
        ]
        spread = result.spread
    elif scoring.kind == "classes":
        rows, digits = np.arange(len(result.labels)), PROBABILITY_DIGITS
        columns = [
            _named("prediction", result.answers, scoring.titles),
            _numbers("probability", probabilities[rows, result.answers], digits),
            _numbers("error", 1 - probabilities[rows, result.labels.astype(int)], digits),
        ]
        spread = None if result.spread is None else result.spread[rows, result.answers]
    else:
        digits = PROBABILITY_DIGITS
        columns = [
            _texts("prediction", _emotions(result.answers > 0, scoring.titles), of="main"),
            _numbers("error", np.abs(probabilities - result.labels).mean(1), digits),
        ]
        spread = None if result.spread is None else result.spread.max(1)
    return columns if spread is None else [*columns, _numbers("spread", spread, digits)]


def further_columns(result: SplitResult) -> list[Column]:
    """The other heads and the edges."""
    scoring, columns = result.scoring, list[Column]()
    for head, values in result.predictions.items():
        title = result.titles.get(head, head)
        if head == "fused":
            continue
        if scoring.kind == "regression":
            columns.append(_numbers(title, values, digits_of(result), of="heads"))
        elif scoring.kind == "classes":
            columns.append(_named(title, values.argmax(-1), scoring.titles, of="heads"))
        else:
            columns.append(_texts(title, _emotions(values > 0, scoring.titles), of="heads"))
    for space, edges in result.edges.items():
        for number, (to, source) in enumerate(PAIRS):
            title = f"{source} → {to}, {_SPACE.get(space, space)}"
            columns.append(_numbers(title, edges[:, number], PROBABILITY_DIGITS, of="edges"))
    return columns


def digits_of(result: SplitResult) -> int:
    """Digits behind the point of a sentiment."""
    low, high = result.scoring.limits
    return 2 if high - low >= _SHORT_RANGE else PROBABILITY_DIGITS


def _numbers(title: str, values: NDArray[Any], digits: int, *, of: str = "main") -> Column:
    """Whole numbers; null where one is not finite."""
    scaled = np.asarray(values, dtype=np.float64) * 10**digits
    whole = np.rint(np.nan_to_num(scaled)).astype(np.int64).tolist()
    finite = np.isfinite(scaled).tolist()
    return {
        "title": title,
        "of": of,
        "digits": digits,
        "values": [value if there else None for value, there in zip(whole, finite, strict=True)],
    }


def _named(title: str, places: NDArray[Any], names: Sequence[str], *, of: str = "main") -> Column:
    return {"title": title, "of": of, "names": list(names), "values": places.tolist()}


def _texts(title: str, values: Sequence[str], *, of: str) -> Column:
    return {"title": title, "of": of, "values": list(values)}


def _emotions(has: NDArray[np.bool_], names: Sequence[str]) -> list[str]:
    return [", ".join(name for name, there in zip(names, row, strict=True) if there) or "none" for row in has.tolist()]


def _worst(columns: list[Column], group: Group, result: SplitResult) -> Table:
    """The samples with the largest errors, as the page shows them first."""
    errors = next(column["values"] for column in columns if column["title"] == "error")
    order = sorted(range(len(errors)), key=lambda row: -(errors[row] or 0))[:WORST]
    return Table(
        name="worst",
        title=f"Samples of the {result.split} split, worst first: {group.name}, {group.seeds}",
        split=result.split,
        header=[column["title"] for column in columns],
        rows=[[cell_text(column, row) for column in columns] for row in order],
    )


def cell_text(column: Column, row: int) -> str:
    """A cell as the page shows it."""
    value = column["values"][row]
    if value is None:
        return "–"
    if "names" in column:
        return str(column["names"][value])
    return f"{value / 10 ** column['digits']:.{column['digits']}f}" if "digits" in column else str(value)
