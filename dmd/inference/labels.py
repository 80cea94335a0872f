"""What samples really are, as a model predicts it: the labels of shards or of a feature pickle.

Labels are sentiments in the units of the data that the model was trained on, class numbers, or emotions as 0 and 1:
[N, ...] float64, NaN where a sample has none.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_shards.labels import RELATIVE_ROUNDING, are_class_numbers, are_sentiments
from data_shards.sources import fields as fields_of
from data_shards.sources.conversions import is_missing
from data_shards.sources.pickled import Fields
from dmd.config import Config
from dmd.data.loader import LABELS
from dmd.data.targets import scoring_of, targets
from dmd.metrics import Scoring
from dmd.system.trained_model import ModelCard, config_of

_SENTIMENTS = (*fields_of.SENTIMENT_FIELDS, "label")
_CLASSES = (fields_of.CLASS_FIELD, "labels", "label")


def shard_labels(batch: Mapping[str, NDArray[Any]], config: Config, scoring: Scoring) -> NDArray[np.float64]:
    """The labels of samples that a reader has read."""
    stored = torch.from_numpy(batch[LABELS[config.data.classes]].astype(np.float64))
    return scoring.in_units(_targets(stored, scoring)).numpy()


def pickle_labels(fields: Fields, count: int, card: ModelCard, where: str) -> NDArray[np.float64]:
    """The labels of the `count` samples of a pickle's split, which may have none.

    Args:
        where: what errors call the split, with a colon behind it.

    Raises:
        ValueError: labels that are none of the model's and that `dmd shard` would reject, or are not as many as there
            are samples.
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
    values = torch.from_numpy(given)
    in_shards = scoring.stored(values).double()
    rounding = 0.0 if scoring.has_units_of_shards else RELATIVE_ROUNDING
    is_right = are_class_numbers(given, scoring.outputs) if stored else are_sentiments(in_shards, rounding=rounding)
    wrong = np.flatnonzero(~np.isnan(given) & ~is_right)
    if len(wrong):
        low, high = scoring.limits
        scale = f"a sentiment of the model's data, which are {low:g} to {high:g}"
        kind = f"a class of the model, which are 0 to {scoring.outputs - 1}" if stored else scale
        raise ValueError(
            f"{where}{name} of sample {wrong[0]} is {given[wrong[0]]:g}, which is not {kind}; mend it, or leave the "
            "labels out"
        )
    return (_targets(in_shards, scoring) if scoring.classes_by else values).numpy()


def _emotions(fields: Fields, count: int, scoring: Scoring, where: str) -> NDArray[np.float64]:
    """Emotions [N, L] of a field with a number for each, of all samples or of none.

    Of the other names that `dmd shard` knows, a field counts where it has as many entries as there are emotions: MMSA's
    pickles have class numbers or sentiments there, one a sample.
    """
    none = np.full((count, scoring.outputs), np.nan)
    name = next(
        (name for name in fields_of.EMOTION_FIELDS if _holds_emotions(fields, name, count * scoring.outputs)), None
    )
    if name is None:
        return none
    values = fields[name]
    if _has_no_values(values):
        return none
    if count == 1 and np.shape(values)[:1] != (1,):
        values = [values]  # one sample without the axis of samples
    flags = fields_of.emotions({name: values}, name, where.removesuffix(": "), scoring.names)
    _check_count(flags, count, where)
    return flags.astype(np.float64)


def _holds_emotions(fields: Fields, name: str, size: int) -> bool:
    """Whether a field is one of emotions: by its name, or by its entries, a number or a pair for each emotion."""
    values = dict(fields.items()).get(name)  # a field that is looked at alone is not one that is read
    if values is None or name == fields_of.EMOTION_FIELDS[0]:
        return values is not None
    try:
        return np.size(values) in (size, 2 * size)
    except ValueError:  # ragged
        return False


def _has_no_values(values: Any) -> bool:
    """Whether all entries are missing."""
    try:
        return all(map(is_missing, np.asarray(values, dtype=object).reshape(-1).tolist()))
    except ValueError:  # ragged
        return False


def _check_count(given: NDArray[Any], count: int, where: str) -> None:
    if len(given) != count:
        raise ValueError(f"{where}{len(given)} labels for {count} samples; give one per sample, or none")


def _targets(stored: torch.Tensor, scoring: Scoring) -> torch.Tensor:
    """What the model is to predict; a label that is not there stays NaN."""
    return torch.where(stored.isnan(), stored, targets(stored.nan_to_num(), scoring))
