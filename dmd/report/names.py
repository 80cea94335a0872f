"""The page that lists metrics, heads and loss terms: `python -m dmd.report.names > docs/names.md`.

It is written from the tables that the program itself reads: `dmd.metrics.METRICS`, `dmd.model.dmd.HEADS` and
`dmd.losses.terms`.
"""

import sys

from dmd.losses.terms import Part, all_terms
from dmd.metrics import METRICS, heading
from dmd.model.dmd import HEADS

INTRODUCTION = """\
# Metrics, heads, loss terms

Written by `python -m dmd.report.names > docs/names.md`; edit the rows of the tables in `dmd/metrics/table.py`,
`dmd/model/dmd.py` and `dmd/losses/terms.py`, not this page.
"""
_WEIGHTS: dict[Part, str] = {
    "task": "1",
    "decoupling": "`decoupling_weight`",
    "relation": "`decoupling_weight` × `gamma`",
    "distillation": "`distillation_weight`",
    "regulariser": "`distillation_weight`",
}
_KINDS = {"regression": "a regression", "classes": "a classifier"}


def page() -> str:
    """The whole page as Markdown."""
    metrics = [f"| `{row.name}` | {heading(row.name)} | {_KINDS[row.kind]} | {row.about} |" for row in METRICS.values()]
    heads = [f"| `{head.name}` | {head.title} | {head.about} |" for head in HEADS.values()]
    terms = [f"| `{term.name}` | {_WEIGHTS[term.part]} | {term.about} |" for term in all_terms()]
    return "\n".join(
        [
            INTRODUCTION,
            "## Metrics",
            "",
            "Programs read names and, of those in per cent, shares in [0, 1]; people read titles. TensorBoard has",
            "`valid/NAME` of the fused head and `valid_heads/HEAD/NAME` of all.",
            "",
            "| name | title | of | |",
            "|---|---|---|---|",
            *metrics,
            "",
            "## Heads",
            "",
            "| name | title | predicts from |",
            "|---|---|---|",
            *heads,
            "",
            "## Loss terms",
            "",
            "Logged before weighting as `train/NAME`; `train/total` is their weighted sum. Weights are config values",
            "of `objective`.",
            "",
            "| name | weight | |",
            "|---|---|---|",
            *terms,
            "",
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(page())
