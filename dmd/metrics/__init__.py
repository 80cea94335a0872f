"""The field's metrics for sentiment in [-3, 3]: MAE, Corr, Acc7, Acc5, Acc3, and Acc2 and F1 in both protocols; and
accuracy, F1 and confusion of classifiers.

`dmd.metrics.table` lists them, one row each: name, title, unit, function, and the views that show it. Evaluation, the
epoch line, tables, figures, TensorBoard and searches read that list, so a new metric is its function
(`dmd.metrics.sentiment`, `dmd.metrics.classes`) and a row. `dmd.metrics.measure` computes all rows of a head:

    predictions, labels of a split -> head_metrics -> {name: value} -> heading, show -> what people read

The conventions are those of the published code (mdswyz/DMD `metricsTop.py`, thuiar/MMSA, both after MulT's
`eval_mosei_regression`): classes are values clipped and rounded half to even; Has0 asks `>= 0`; Non0 leaves out the
samples whose label is 0 and asks `> 0`; F1 is the mean over the classes weighted by their share of the labels.
"""

from dmd.metrics.classes import class_names, confusion, to_classes
from dmd.metrics.measure import class_metrics, head_metrics, sentiment_metrics
from dmd.metrics.table import (
    METRICS,
    Metric,
    heading,
    headings_of,
    in_view,
    loss_title,
    metrics_of,
    show,
    shown,
    unit_note,
)

__all__ = [
    "METRICS",
    "Metric",
    "class_metrics",
    "class_names",
    "confusion",
    "head_metrics",
    "heading",
    "headings_of",
    "in_view",
    "loss_title",
    "metrics_of",
    "sentiment_metrics",
    "show",
    "shown",
    "to_classes",
    "unit_note",
]
