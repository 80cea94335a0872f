"""All metrics of a head's predictions, by the rows of `dmd.metrics.table`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dmd.metrics.classes import confusion
from dmd.metrics.emotions import one_of, says_emotions
from dmd.metrics.scoring import Scoring
from dmd.metrics.table import Reads

if TYPE_CHECKING:
    from torch import Tensor

SENTIMENTS = Scoring()
"""Of sentiments in [-3, 3], by the protocol of CMU-MOSI."""


def head_metrics(prediction: Tensor, label: Tensor, scoring: Scoring = SENTIMENTS) -> dict[str, float]:
    """All metrics of N predictions, in float64.

    Those in per cent are shares in [0, 1] here. A metric that is not defined is NaN: correlations where predictions or
    labels are constant up to float32 rounding (so also for one sample), acc2_non0 and f1_non0 where every label is 0,
    the weighted accuracy of an emotion that all samples have or none, and all metrics where a prediction is not finite.
    F1 of classes is over those that occur among the labels or the predictions.

    Args:
        prediction: sentiments [N] in the units of the source, or logits [N, outputs]; on any device.
        label: sentiments [N], class numbers [N], or emotions [N, L] as 0 and 1.
        scoring: what they mean.

    Raises:
        ValueError: no sample, other shapes, or labels that are not finite, no class numbers, or neither 0 nor 1.
    """
    _check(prediction, label, scoring)
    rows = scoring.rows()
    if not prediction.isfinite().all():
        return {row.name: math.nan for row in rows}
    prediction, label = (values.detach().cpu().double() for values in (prediction, label))
    read = {reads: _as_read(reads, prediction, label, scoring) for reads in {row.reads for row in rows}}
    metrics: dict[str, float] = {}
    for row in rows:
        answers, truth = read[row.reads]
        if row.name.partition(".")[2]:
            place = scoring.titles.index(row.name.partition(".")[2])
            answers, truth = answers[:, place], truth[:, place]
        metrics[row.name] = row.function(answers, truth)
    return metrics


def _as_read(reads: Reads, prediction: Tensor, label: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """Predictions and labels as metrics read them."""
    if reads == "answers":
        return prediction, label.long() if scoring.kind == "classes" else label
    if scoring.kind == "classes":
        prediction = prediction.argmax(1)
    elif scoring.kind == "multilabel":
        prediction = says_emotions(prediction)
    return answers_as_read(reads, prediction, label, scoring)


def answers_as_read(reads: Reads, answers: Tensor, labels: Tensor, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """What metrics over samples read of what a model answers.

    Args:
        answers: sentiments or class numbers [..., N], or booleans [..., N, L].
        labels: [N], or [N, L].
    """
    if reads == "stored":
        return scoring.stored(answers).double(), scoring.stored(labels).double()
    if reads == "emotions" and scoring.kind == "classes":
        return one_of(answers, scoring.outputs), one_of(labels, scoring.outputs)
    return answers, labels > 0 if scoring.kind == "multilabel" else labels


def _check(prediction: Tensor, label: Tensor, scoring: Scoring) -> None:
    if scoring.kind == "classes":
        confusion(prediction, label)
        return
    wanted = 1 if scoring.kind == "regression" else 2
    if prediction.ndim != wanted or prediction.shape != label.shape or not len(label):
        shapes = f"{list(prediction.shape)} and {list(label.shape)}"
        raise ValueError(
            f"predictions and labels have shapes {shapes}; give two {wanted}-D tensors of one shape, at least 1 sample"
        )
    if not label.isfinite().all():
        count = int((~label.isfinite()).flatten(1).any(1).sum()) if wanted > 1 else int((~label.isfinite()).sum())
        raise ValueError(f"{count} of {len(label)} labels are not finite; leave those samples out")
    if scoring.kind == "multilabel" and not ((label == 0) | (label == 1)).all():
        raise ValueError("labels of emotions are neither 0 nor 1; say of each whether the sample has it")
