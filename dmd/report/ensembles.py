"""The ensemble of a config's seeds, as a result among others."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from dmd.inference.ensemble import ensemble_prediction
from dmd.metrics import head_metrics
from dmd.report.inference import SplitResult, probabilities_of


def ensemble_of(members: Sequence[SplitResult]) -> SplitResult:
    """What the ensemble of models says of the samples that all of them were given; one model is its own ensemble."""
    first = members[0]
    if len(members) == 1:
        return first
    prediction = ensemble_prediction([member.prediction for member in members])
    labels = torch.from_numpy(first.labels)
    spread = prediction.spread
    return replace(
        first,
        predictions={head: values.numpy() for head, values in prediction.heads.items()},
        edges={space: values.numpy() for space, values in prediction.edges.items()},
        metrics={head: head_metrics(values, labels, first.scoring) for head, values in prediction.heads.items()},
        answers=prediction.answers("fused").numpy(),
        probabilities=probabilities_of(prediction),
        spread=None if spread is None else spread.numpy(),
    )
