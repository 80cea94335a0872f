"""What a model is to predict of a sample: its sentiment, its class, or its emotions.

Here config and index meet: `resolve_task` puts what the shards hold in the place of `model.task: auto`, and rejects
what they do not hold; `scoring_of` says what the answers of the model mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from data_shards.format.schema import DatasetInfo
from data_shards.labels import to_source_units
from data_shards.reading.index import ShardIndex
from dmd.config import Config
from dmd.metrics import SENTIMENT_CLASSES, Scoring
from dmd.metrics.bins import EDGES
from dmd.metrics.table import DEFAULTS, PROTOCOLS
from dmd.model.config import Task

_FEWEST_CLASSES = 2
Classes = Literal["sentiment", "stored", "emotions"]
"""Of `data.classes`."""
_NAMES: dict[str, str] = {"stored": "class_names", "emotions": "emotions"}
"""What an index and a model's data call the names of what a model predicts, by `data.classes`."""


def resolve_task(config: Config, info: DatasetInfo) -> Config:
    """The config with what the shards hold in the place of `model.task: auto`; a resolved one stays as it is.

    Raises:
        ValueError: the config asks for what the shards do not hold.
    """
    model, data = config.model, config.data
    task, classes = model.task, data.classes
    if task == "auto":
        task, classes = _held(classes, info)
    if task == "multilabel" and classes == "sentiment":
        classes = "emotions"
    if isinstance(task, int) and info.task == "classes" and classes == "sentiment":
        classes = "stored"
    emotions = len(info.emotions) if task == "multilabel" else 0
    if model.emotions and model.emotions != emotions:
        raise ValueError(
            f"model.emotions is {model.emotions}, but the shards of {info.name} hold {emotions} emotions; leave it out"
        )
    _check_asked(task, classes, info)
    return replace(config, model=replace(model, task=task, emotions=emotions), data=replace(data, classes=classes))


def _held(classes: Classes, info: DatasetInfo) -> tuple[Task, Classes]:
    """Task and `data.classes` of what shards hold, where it is up to them."""
    if info.task == "multilabel" or classes == "emotions":
        return "multilabel", "emotions"
    if info.task == "classes" or (classes == "stored" and info.classes):
        return max(_FEWEST_CLASSES, info.classes), "stored"
    return "regression", classes


def _check_asked(task: Task, classes: Classes, info: DatasetInfo) -> None:
    """Raise ValueError where shards do not hold what a model is to learn."""
    shards = f"the shards of {info.name}"
    held = {"multilabel": f"{len(info.emotions)} emotions", "classes": f"{info.classes} classes"}.get(info.task)
    wanted = {"multilabel": "emotions", "classes": "stored"}.get(info.task)
    if held is not None and (classes != wanted or task == "regression"):
        raise ValueError(f"{shards} hold {held} and no sentiments; set model.task=auto")
    if classes == "stored" and not info.classes:
        raise ValueError(
            f"data.classes is 'stored', but {shards} hold no class labels; write them again with "
            "`dmd shard --class-labels`, or set data.classes=sentiment"
        )
    if classes == "emotions" and len(info.emotions) < _FEWEST_CLASSES:
        raise ValueError(
            f"model.task is {task!r} and data.classes is 'emotions', but {shards} hold {len(info.emotions) or 'no'} "
            "emotions, of which it takes two (one alone is `dmd shard --binary`); set model.task=auto"
        )
    fitting = {"stored": isinstance(task, int), "emotions": task == "multilabel", "sentiment": task != "multilabel"}
    if not fitting[classes]:
        raise ValueError(f"data.classes is {classes!r}, but model.task is {task!r}; set model.task=auto")
    if classes == "stored" and isinstance(task, int) and info.classes > task:
        other = "" if info.task == "classes" else ", or data.classes=sentiment"
        raise ValueError(
            f"model.task is {task}, but {shards} hold the class number {info.classes - 1}; set "
            f"model.task to at least {info.classes}{other}"
        )
    if classes == "sentiment" and isinstance(task, int):
        _check_divides(task, info.protocol)


def _check_divides(task: int, protocol: str) -> None:
    """Raise ValueError unless a protocol divides sentiments into so many classes."""
    counts = tuple(EDGES) if protocol == "sims" else SENTIMENT_CLASSES
    if task not in counts:
        of_sims = " by the protocol sims" if protocol == "sims" else ""
        raise ValueError(
            f"model.task is {task}, but a sentiment has {', '.join(map(str, counts))} classes{of_sims}; set one of "
            "them, or data.classes=stored for the class numbers of the shards"
        )


def check_same_labels(config: Config, data: Mapping[str, Any], info: DatasetInfo) -> None:
    """Raise ValueError where shards do not hold what a model of this config, trained on `data`, predicts."""
    resolve_task(config, replace(info, protocol=""))  # that of its data divides the sentiments of a model
    what = _NAMES.get(config.data.classes, "")
    there, here = (tuple(facts.get(what, ())) for facts in (data, vars(info)))
    if there and here and there != here:
        raise ValueError(
            f"the model was trained on {what} {', '.join(there)}, these shards have {', '.join(here)}; give shards "
            "with the same in the same order"
        )


def scoring_of(config: Config, facts: Mapping[str, Any]) -> Scoring:
    """What the answers of a model with a resolved config mean.

    Args:
        facts: about the labels of its data, under the names of `DatasetInfo`: `vars(info)`, or `ModelCard.data`. Models
            of older programs lack some.

    Raises:
        ValueError: another number of classes of a sentiment than its protocol has.
    """
    model, kind = config.model, config.model.kind
    declared = str(facts.get("protocol") or DEFAULTS[kind])
    protocol = declared if kind in PROTOCOLS[declared].kinds else DEFAULTS[kind]
    classes = config.data.classes
    if classes == "sentiment" and isinstance(model.task, int):
        _check_divides(model.task, declared)
    names: Sequence[str] = facts.get(_NAMES.get(classes, ""), ())
    return Scoring(
        kind=kind,
        protocol=protocol,
        outputs=model.outputs,
        scale=float(facts.get("label_scale", 1.0)),
        offset=float(facts.get("label_offset", 0.0)),
        names=_as_many(names, model.outputs),
        classes_by="" if kind != "classes" or classes == "stored" else "sims" if declared == "sims" else "mosi",
    )


def _as_many(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Names of all outputs, of which a model may have more than its data has classes; none where there are none. What
    has none is called by its number, as a class where another one has that name."""
    found = list(names)
    for number in range(len(names), count if names else 0):
        name = str(number)
        while name in found:
            name = f"class {name}"
        found.append(name)
    return tuple(found)


def targets(labels: Tensor, scoring: Scoring) -> Tensor:
    """What the heads are to predict, like `labels`, which are what `Batch.labels` holds."""
    return scoring.classes_of(labels).to(labels.dtype) if scoring.classes_by else labels


def check_targets(config: Config, index: ShardIndex) -> None:
    """Raise ValueError where all targets of the training split are equal, so that nothing can be learned."""
    task, facts = config.model.task, index.label_facts("train")
    found: Sequence[float]
    if config.data.classes == "emotions":
        return  # `dmd shard` has looked at each of them
    if config.data.classes == "stored":
        found = facts.occurring
    elif facts.min is None or facts.max is None:
        return
    elif task == "regression":
        found = sorted({facts.min, facts.max})
    else:
        ends = torch.tensor([facts.min, facts.max])
        found = sorted(set(scoring_of(config, vars(index.info)).classes_of(ends).tolist()))
    if len(found) == 1 and index.num_samples("train") > 1:
        info = index.info
        value = to_source_units(found[0], info.label_scale, info.label_offset) if task == "regression" else found[0]
        what = f"sentiment {value:g}" if task == "regression" else f"class {value} of model.task={task}"
        labels = facts.describe(
            class_names=info.class_names, emotions=info.emotions, scale=info.label_scale, offset=info.label_offset
        )
        raise ValueError(
            f"every training sample of {info.name} is {what} (labels: {labels}), from which nothing "
            "can be learned; choose another model.task, or say in `dmd shard` what the labels are (--classes, "
            "--binary, --label-scale)"
        )
