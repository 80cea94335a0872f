"""What TensorBoard's page *Custom Scalars* shows of a run: validation, objective, edges and learning rate on one page.

Runs with the same layout share its charts. TensorBoard takes the last layout of a run, so each session writes one.
"""

import re
from collections.abc import Iterable
from typing import get_args

from dmd.losses.consistency import CONSISTENCY
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


def layout(scoring: Scoring, *, consistency: float = 0.0) -> Layout:
    """The page of a model with these metrics.

    Args:
        consistency: `objective.consistency`, without which there is no such term.
    """
    rows = {row.name: row for row in scoring.rows()}
    headline = [rows[name] for name in in_view("headline", rows)]
    return {
        f"validation (protocol {scoring.protocol})": {
            row.title + " (share)" * (row.unit == "%"): _chart([f"valid/{row.name}"]) for row in headline
        },
        "objective": {
            "total": _chart([f"train/{TOTAL}"]),
            **{
                _PART_TITLES[part]: _chart(f"train/{term.name}" for term in all_terms() if term.part == part)
                for part in get_args(Part)
            },
            **({CONSISTENCY.title: _chart([f"train/{CONSISTENCY.name}"])} if consistency else {}),
        },
        "edges of the GD-Units": {
            title: ["Multiline", [f"train/{EDGES}{space}/.+$"]] for space, title in SPACE_TITLE.items()
        },
        "steps": {
            "learning rate": _chart(["train/learning_rate", "train/learning_rate_text"]),
            "gradient norm": _chart(["train/gradient_norm"]),
            "samples per second": _chart(["train/samples_per_second"]),
        },
    }


def _chart(tags: Iterable[str]) -> list[str | list[str]]:
    return ["Multiline", [re.escape(tag) + "$" for tag in tags]]
