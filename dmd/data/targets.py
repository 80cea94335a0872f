"""What a model is to predict of a sample: its sentiment, or its class, from the sentiment or as it is stored."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from data_shards.format.schema import DatasetInfo
from data_shards.reading.index import ShardIndex
from dmd.config import Config
from dmd.metrics import to_classes
from dmd.model.config import Task


def targets(labels: Tensor, config: Config) -> Tensor:
    """Sentiments or class numbers, like `labels`, which are what `Batch.labels` holds."""
    task = config.model.task
    if task == "regression" or config.data.classes == "stored":
        return labels
    return to_classes(labels, task).to(labels.dtype)


def check_classes(config: Config, info: DatasetInfo) -> None:
    """Raise ValueError where the config asks for class labels or sentiments that the shards do not hold."""
    task, stored = config.model.task, config.data.classes == "stored"
    if info.task == "classes" and (task == "regression" or not stored):
        fitting = [number for number in get_args(Task)[1:] if number >= info.classes]
        asked = (
            f"set model.task={fitting[0]} data.classes=stored" if fitting else "a model.task of as many is not there"
        )
        raise ValueError(f"the shards of {info.name} hold {info.classes} classes and no sentiments; {asked}")
    if stored and task == "regression":
        raise ValueError("data.classes is 'stored', but model.task is 'regression'; set model.task to their number")
    if stored and not info.classes:
        raise ValueError(
            f"data.classes is 'stored', but the shards of {info.name} hold no class labels; write them again with "
            "`dmd shard --class-labels`, or set data.classes=sentiment"
        )
    if stored and task != "regression" and info.classes > task:
        raise ValueError(
            f"model.task is {task}, but the shards of {info.name} hold the class number {info.classes - 1}; set "
            f"model.task to at least {info.classes}, or data.classes=sentiment"
        )


def check_targets(config: Config, index: ShardIndex) -> None:
    """Raise ValueError where all targets of the training split are equal, so that nothing can be learned."""
    task, facts = config.model.task, index.label_facts("train")
    found: Sequence[float]
    if config.data.classes == "stored":
        found = facts.occurring
    elif facts.min is None or facts.max is None:
        return
    elif task == "regression":
        found = sorted({facts.min, facts.max})
    else:
        found = sorted(set(to_classes(torch.tensor([facts.min, facts.max]), task).tolist()))
    if len(found) == 1 and index.num_samples("train") > 1:
        what = f"sentiment {found[0]:g}" if task == "regression" else f"class {found[0]} of model.task={task}"
        raise ValueError(
            f"every training sample of {index.info.name} is {what} (labels: {facts.describe()}), from which nothing "
            "can be learned; choose another model.task, or say in `dmd shard` what the labels are (--classes, "
            "--binary, --label-scale)"
        )
