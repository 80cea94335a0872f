"""What TensorBoard's page *Custom Scalars* shows of a run: validation, objective, edges and learning rate on one page.

Runs with the same layout share its charts. TensorBoard takes the last layout of a run, so each session writes one.
"""

import re
from collections.abc import Iterable
from typing import get_args

from dmd.losses.consistency import CONSISTENCY
from dmd.losses.model_objective import ModelObjective
from dmd.losses.objective import Objective
from dmd.losses.terms import Part, all_terms
from dmd.metrics import Scoring, in_view
from dmd.report.style import SPACE_TITLE
from dmd.system.pass_terms import EDGES, TOTAL

Layout = dict[str, dict[str, list[str | list[str]]]]
"""{category: {chart: [kind, [patterns of tags]]}}, as `SummaryWriter.add_custom_scalars` takes it."""
_PART_TITLES: dict[Part, str] = {
    "task": "task, by head",
    "decoupling": "decoupling",
    "relation": "relation",
    "distillation": "distillation",
    "regulariser": "prior regulariser",
}


def layout(scoring: Scoring, objective: type[ModelObjective], *, consistency: float = 0.0) -> Layout:
    """The page of a model with these metrics and this objective.

    Args:
        consistency: `objective.consistency`, without which there is no such term.
    """
    rows = {row.name: row for row in scoring.rows()}
    edges: dict[str, list[str | list[str]]] = {
        SPACE_TITLE[space]: ["Multiline", [f"train/{EDGES}{space}/.+$"]] for space in objective.spaces
    }
    headline = [rows[name] for name in in_view("headline", rows)]
    return {
        f"validation (protocol {scoring.protocol})": {
            row.title + " (share)" * (row.unit == "%"): _chart([f"valid/{row.name}"]) for row in headline
        },
        "objective": {
            "total": _chart([f"train/{TOTAL}"]),
            **{title: _chart(f"train/{name}" for name in names) for title, names in _parts(objective).items()},
            **({CONSISTENCY.title: _chart([f"train/{CONSISTENCY.name}"])} if consistency else {}),
        },
        **({"edges of the GD-Units": edges} if edges else {}),
        "steps": {
            "learning rate": _chart(["train/learning_rate", "train/learning_rate_text"]),
            "gradient norm": _chart(["train/gradient_norm"]),
            "samples per second": _chart(["train/samples_per_second"]),
        },
    }


def _parts(objective: type[ModelObjective]) -> dict[str, list[str]]:
    """The names of the terms that one chart shows, by its title."""
    if issubclass(objective, Objective):
        return {_PART_TITLES[part]: [t.name for t in all_terms() if t.part == part] for part in get_args(Part)}
    return {"terms": [term.name for term in objective.described()]}


def _chart(tags: Iterable[str]) -> list[str | list[str]]:
    return ["Multiline", [re.escape(tag) + "$" for tag in tags]]
