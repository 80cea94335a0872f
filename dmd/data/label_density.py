"""The weights of the train split's samples, read from the index: the same on every rank."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from data_shards.format.index_file import ROWS_PER_GROUP
from data_shards.reading.index import ShardIndex
from dmd.config import Config
from dmd.data.loader import LABELS
from dmd.data.targets import scoring_of, targets
from dmd.losses.label_weights import LabelWeights, check_width, of_classes, of_sentiments


def label_weights(config: Config, index: ShardIndex) -> LabelWeights | None:
    """What `objective.label_density_smoothing` makes of the labels; None where it is off.

    Args:
        config: whose task is resolved. One that predicts emotions is rejected before.

    Raises:
        ValueError: a kernel that is far too narrow.
    """
    width = config.objective.label_density_smoothing
    if not width:
        return None
    if config.model.kind == "classes":
        return of_classes(_targets(config, index), config.model.outputs)
    low, high = _ends(index)
    return of_sentiments(_targets(config, index), low=low, high=high, width=width)


def check_label_density(config: Config, index: ShardIndex) -> None:
    """Raise ValueError where `label_weights` would, without reading a label.

    Args:
        config: whose task is resolved.
    """
    width = config.objective.label_density_smoothing
    if width and config.model.kind != "classes":
        low, high = _ends(index)
        check_width(low=low, high=high, width=width)


def _ends(index: ShardIndex) -> tuple[float, float]:
    """The lowest and the highest label of the train split."""
    facts = index.label_facts("train")
    assert facts.min is not None
    assert facts.max is not None
    return facts.min, facts.max


def _targets(config: Config, index: ShardIndex) -> Iterator[Tensor]:
    """What the heads are to predict of the train split, part by part, [n] float32."""
    scoring, column = scoring_of(config, vars(index.info)), LABELS[config.data.classes]
    total = index.num_samples("train")
    for begin in range(0, total, ROWS_PER_GROUP):
        rows = index.records("train", np.arange(begin, min(begin + ROWS_PER_GROUP, total)))
        yield targets(torch.from_numpy(rows[column].astype(np.float32)), scoring)
