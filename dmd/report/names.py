"""The page that lists metrics, heads and loss terms: `python -m dmd.report.names > docs/names.md`.

It is written from the tables that the program itself reads: `dmd.metrics.METRICS`, and the heads and terms of each row
of `dmd.system.models`.
"""

import sys

from dmd.metrics import METRICS, heading
from dmd.metrics.table import PROTOCOLS, Protocol
from dmd.model.config import Kind
from dmd.system.models import MODELS, terms_of

INTRODUCTION = """\
# Metrics, heads, loss terms

Written by `python -m dmd.report.names > docs/names.md`; edit the rows of the tables in `dmd/metrics/table.py`,
`dmd/losses/terms.py`, and of the networks and objectives of `dmd/system/models.py`, not this page.
"""
_KINDS: dict[Kind, str] = {"regression": "sentiments", "classes": "classes", "multilabel": "emotions"}


def page() -> str:
    """The whole page as Markdown."""
    metrics = [
        f"| `{row.name}` | {heading(row.name)} | {', '.join(row.protocols)} | {row.about} |" for row in METRICS.values()
    ]
    protocols = [
        f"| `{row.name}` | {', '.join(_KINDS[kind] for kind in row.kinds)} | {_protocol(row)} |"
        for row in PROTOCOLS.values()
    ]
    heads = [
        f"| `{row.name}` | `{head.name}` | {head.title} | {head.about} |"
        for row in MODELS.values()
        for head in row.network_class().heads.values()
    ]
    terms = [
        f"| `{name}` | `{term.name}` | {term.weight} | {term.about} |" for name in MODELS for term in terms_of(name)
    ]
    return "\n".join(
        [
            INTRODUCTION,
            "## Metrics",
            "",
            "Programs read names and, of those in per cent, shares in [0, 1]; people read titles. TensorBoard has",
            "`valid/NAME` of the fused head and `valid_heads/HEAD/NAME` of all. Where a name ends in `.NAME`, there is",
            "one for each class or emotion of the data, by its name. The index of the data says its protocol",
            "([tasks.md](tasks.md)).",
            "",
            "| name | title | protocols | |",
            "|---|---|---|---|",
            *metrics,
            "",
            "## Protocols",
            "",
            "| protocol | of | |",
            "|---|---|---|",
            *protocols,
            "",
            "## Heads",
            "",
            "| model | name | title | predicts from |",
            "|---|---|---|---|",
            *heads,
            "",
            "## Loss terms",
            "",
            "Logged before weighting as `train/NAME`; `train/total` is their weighted sum.",
            "",
            "| model | name | weight | |",
            "|---|---|---|---|",
            *terms,
            "",
        ]
    )


def _protocol(row: Protocol) -> str:
    return "; ".join([row.about, *(f"*{name}*: {text}" for name, text in row.endings.items())])


if __name__ == "__main__":
    sys.stdout.write(page())
