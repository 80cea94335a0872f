"""The field's metrics: of sentiments (CMU-MOSI, CMU-MOSEI, CH-SIMS), classes (MELD), emotions (IEMOCAP, CMU-MOSEI).

`dmd.metrics.table` lists them, one row each: name, title, unit, function, the protocols that report it, and the views
that show it. Evaluation, the epoch line, tables, figures, TensorBoard and searches read that list, so a new metric is
its function (`sentiment`, `bins`, `classes`, `emotions`) and a row. `scoring` says what the answers of a model mean: in
which units sentiments are, what classes and emotions are called, which protocol measures them. `measure` computes all
rows of a head:

    predictions, labels of a split, scoring -> head_metrics -> {name: value} -> heading, show -> what people read

The conventions of sentiments are those of the published code (mdswyz/DMD `metricsTop.py`, thuiar/MMSA, both after
MulT's `eval_mosei_regression`): classes are values clipped and rounded half to even; Has0 asks `>= 0`; Non0 leaves out
the samples whose label is 0 and asks `> 0`; F1 is the mean over the classes weighted by their share of the labels.
"""

from dmd.metrics.classes import SENTIMENT_CLASSES, confusion, to_classes
from dmd.metrics.measure import head_metrics
from dmd.metrics.scoring import Scoring
from dmd.metrics.table import (
    METRICS,
    Metric,
    heading,
    headings_of,
    in_view,
    known_metrics,
    loss_title,
    metric,
    show,
    shown,
    unit_note,
)

__all__ = [
    "METRICS",
    "SENTIMENT_CLASSES",
    "Metric",
    "Scoring",
    "confusion",
    "head_metrics",
    "heading",
    "headings_of",
    "in_view",
    "known_metrics",
    "loss_title",
    "metric",
    "show",
    "shown",
    "to_classes",
    "unit_note",
]
