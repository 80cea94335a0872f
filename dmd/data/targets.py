"""What a model is to predict of a sample: its sentiment, its class, or its emotions.

Here config and index meet: `resolve_task` puts what the shards hold in the place of `model.task: auto`, and rejects what
they do not hold; `scoring_of` says what the answers of the model mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from data_shards.format.schema import DatasetInfo
from data_shards.reading.index import ShardIndex
from dmd.config import Config
from dmd.metrics import Scoring
from dmd.metrics.bins import EDGES
from dmd.metrics.table import DEFAULTS, PROTOCOLS
from dmd.model.config import Task

_FEWEST_CLASSES = 2


def resolve_task(config: Config, info: DatasetInfo) -> Config:
    """The config with what the shards hold in the place of `model.task: auto`; a resolved one stays as it is.

    Raises:
        ValueError: the config asks for what the shards do not hold.
    """
    model, data = config.model, config.data
    task: Task = model.task
    if task == "auto":
        if info.task == "classes":
            data = replace(data, classes="stored")
        by_number = info.task == "classes" or (data.classes == "stored" and info.classes > 0)
        task = "regression" if info.task == "regression" else "multilabel"
        task = max(_FEWEST_CLASSES, info.classes) if by_number else task
    emotions = len(info.emotions) if task == "multilabel" else 0
    if model.emotions and model.emotions != emotions:
        raise ValueError(
            f"model.emotions is {model.emotions}, but the shards of {info.name} hold {emotions} emotions; leave it out"
        )
    _check_task(task, data.classes == "stored", info)
    return replace(config, model=replace(model, task=task, emotions=emotions), data=data)


def _check_task(task: Task, stored: bool, info: DatasetInfo) -> None:
    shards = f"the shards of {info.name}"
    if task == "multilabel" and info.task != "multilabel":
        raise ValueError(f"model.task is 'multilabel', but {shards} hold no emotions; set model.task=auto")
    if task != "multilabel" and info.task == "multilabel":
        count = len(info.emotions)
        raise ValueError(f"{shards} hold {count} emotions and no sentiments or classes; set model.task=auto")
    if task == "multilabel":
        if len(info.emotions) < _FEWEST_CLASSES:
            raise ValueError(f"{shards} hold one emotion; write them again with `dmd shard --binary`, as two classes")
        return
    if info.task == "classes" and (task == "regression" or not stored):
        raise ValueError(f"{shards} hold {info.classes} classes and no sentiments; set model.task=auto")
    if stored and not info.classes:
        raise ValueError(
            f"data.classes is 'stored', but {shards} hold no class labels; write them again with "
            "`dmd shard --class-labels`, or set data.classes=sentiment"
        )
    if stored and task == "regression":
        raise ValueError("data.classes is 'stored', but model.task is 'regression'; set model.task to their number")
    if stored and isinstance(task, int) and info.classes > task:
        raise ValueError(
            f"model.task is {task}, but {shards} hold the class number {info.classes - 1}; set "
            f"model.task to at least {info.classes}, or data.classes=sentiment"
        )
    if isinstance(task, int) and not stored and info.protocol == "sims" and task not in EDGES:
        raise ValueError(
            f"model.task is {task}, but {shards} have the protocol sims, which has {', '.join(map(str, EDGES))} "
            "classes of a sentiment; set one of them"
        )


def check_same_labels(config: Config, data: Mapping[str, Any], info: DatasetInfo) -> None:
    """Raise ValueError where shards do not hold what a model of this config, trained on `data`, predicts."""
    resolve_task(config, info)
    for what in ("class_names", "emotions"):
        there, here = tuple(data.get(what, ())), tuple(getattr(info, what))
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
    """
    model, kind = config.model, config.model.kind
    declared = str(facts.get("protocol") or DEFAULTS[kind])
    protocol = declared if kind in PROTOCOLS[declared].kinds else DEFAULTS[kind]
    stored = config.data.classes == "stored"
    names: Sequence[str] = ()
    if kind != "regression" and (stored or kind == "multilabel"):
        names = facts.get("emotions" if kind == "multilabel" else "class_names", ())
    return Scoring(
        kind=kind,
        protocol=protocol,
        outputs=model.outputs,
        scale=float(facts.get("label_scale", 1.0)),
        offset=float(facts.get("label_offset", 0.0)),
        names=_as_many(names, model.outputs),
        classes_by="" if kind != "classes" or stored else "sims" if declared == "sims" else "mosi",
    )


def _as_many(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Names of all outputs, of which a model may have more than its data has classes; none where there are none."""
    return (*names, *map(str, range(len(names), count))) if names else ()


def targets(labels: Tensor, scoring: Scoring) -> Tensor:
    """What the heads are to predict, like `labels`, which are what `Batch.labels` holds."""
    return scoring.classes_of(labels).to(labels.dtype) if scoring.classes_by else labels


def check_targets(config: Config, index: ShardIndex) -> None:
    """Raise ValueError where all targets of the training split are equal, so that nothing can be learned."""
    task, facts = config.model.task, index.label_facts("train")
    found: Sequence[float]
    if config.model.kind == "multilabel":
        return  # `dmd shard` has looked at each emotion
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
        what = f"sentiment {found[0]:g}" if task == "regression" else f"class {found[0]} of model.task={task}"
        raise ValueError(
            f"every training sample of {index.info.name} is {what} (labels: {facts.describe()}), from which nothing "
            "can be learned; choose another model.task, or say in `dmd shard` what the labels are (--classes, "
            "--binary, --label-scale)"
        )
