"""What samples really are, as a model predicts it: the labels of shards or of a feature pickle.

Labels are sentiments in the units of the data that the model was trained on, class numbers, or emotions as 0 and 1:
[N, ...] float64, NaN where a sample has none.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.sources import fields as fields_of
from data_shards.sources.pickled import Fields
from dmd.config import Config
from dmd.data.loader import LABELS
from dmd.data.targets import scoring_of, targets
from dmd.metrics import Scoring
from dmd.system.trained_model import ModelCard, config_of

_SENTIMENTS = ("regression_labels", "labels", "label")
_CLASSES = ("classification_labels", "labels", "label")
_EMOTIONS = ("emotions", "labels", "classification_labels")


def shard_labels(batch: Mapping[str, NDArray[Any]], config: Config, scoring: Scoring) -> NDArray[np.float64]:
    """The labels of samples that a reader has read."""
    stored = torch.from_numpy(batch[LABELS[config.data.classes]].astype(np.float64))
    return scoring.in_units(_targets(stored, scoring)).numpy()


def pickle_labels(fields: Fields, count: int, card: ModelCard, where: str) -> NDArray[np.float64]:
    """The labels of the `count` samples of a pickle's split, which may have none.

    Args:
        where: what errors call the split, with a colon behind it.

    Raises:
        ValueError: labels that are none of the model's, or are not as many as there are samples.
    """
    config = config_of(card)
    scoring = scoring_of(config, card.data)
    if scoring.kind == "multilabel":
        return _emotions(fields, count, scoring, where)
    stored = config.data.classes == "stored"
    name = next((name for name in (_CLASSES if stored else _SENTIMENTS) if fields.get(name) is not None), None)
    if name is None:
        return np.full(count, np.nan)
    given = fields_of.labels(
        {name: np.atleast_1d(fields[name])},
        name,
        where.removesuffix(": "),
        classes=stored,
        class_names=scoring.names,
    )
    _check_count(given, count, where)
    known = given[~np.isnan(given)]
    wrong = known[~(np.isin(known, np.arange(scoring.outputs)) if stored else np.isfinite(known))]
    if len(wrong):
        kind = f"a class of the model, which are 0 to {scoring.outputs - 1}" if stored else "a finite number"
        raise ValueError(f"{where}{name} holds {wrong[0]:g}, which is not {kind}; mend it, or leave the labels out")
    values = torch.from_numpy(given)
    return (_targets(scoring.stored(values).double(), scoring) if scoring.classes_by else values).numpy()


def _emotions(fields: Fields, count: int, scoring: Scoring, where: str) -> NDArray[np.float64]:
    """Emotions [N, L] of a field with a number for each, of all samples or of none."""
    name = next((name for name in _EMOTIONS if fields.get(name) is not None), None)
    if name is None:
        return np.full((count, scoring.outputs), np.nan)
    given = {name: np.atleast_2d(fields[name])}
    flags = fields_of.emotions(given, name, where.removesuffix(": "), scoring.names)
    _check_count(flags, count, where)
    return flags.astype(np.float64)


def _check_count(given: NDArray[Any], count: int, where: str) -> None:
    if len(given) != count:
        raise ValueError(f"{where}{len(given)} labels for {count} samples; give one per sample, or none")


def _targets(stored: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """What the model is to predict; a label that is not there stays NaN."""
    return torch.where(stored.isnan(), stored, targets(stored.nan_to_num(), scoring))
