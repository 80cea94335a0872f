"""What a model is to predict of a sample: its sentiment, or its class, from the sentiment or as it is stored."""

from torch import Tensor

from data_shards.schema import DatasetInfo
from dmd.config import Config
from dmd.metrics import to_classes


def targets(labels: Tensor, config: Config) -> Tensor:
    """Sentiments or class numbers, like `labels`, which are what `Batch.labels` holds."""
    task = config.model.task
    if task == "regression" or config.data.classes == "stored":
        return labels
    return to_classes(labels, task).to(labels.dtype)


def check_classes(config: Config, info: DatasetInfo) -> None:
    """Raise ValueError where the config asks for class labels that the shards do not hold."""
    task, stored = config.model.task, config.data.classes == "stored"
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
