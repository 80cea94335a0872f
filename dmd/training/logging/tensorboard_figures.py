"""What TensorBoard shows beside numbers: edges with their prior, a prediction scatter, features, the config as text.

The figures are those of `dmd report`. They are drawn after epochs 1, 2, 4, 8, ... and at the end: drawing takes part of
a second, an epoch on a GPU may take less.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from data_shards.reading.reader import ShardReader
from dmd.config import Config
from dmd.data.loader import evaluation_batches
from dmd.evaluation.evaluate import Evaluation
from dmd.losses.distillation import make_prior
from dmd.metrics import Scoring, confusion
from dmd.model.config import MODALITIES
from dmd.model.network import FUSED
from dmd.report.edges import edge_heatmaps
from dmd.report.predictions import confusion_figure, emotion_figure, scatter
from dmd.report.style import RC
from dmd.report.videos import video_of
from dmd.system.modules import BATCH_SIZE
from dmd.system.system import TrainingSystem

FEATURE_SAMPLES = 256
"""Samples of the validation split whose features the projector gets, three modalities each."""

DIGITS = 3
"""Behind the point, of the projector's sentiments."""


class Features(NamedTuple):
    """Points of the projector for one space."""

    space: str
    points: Tensor
    """[3 * samples, n], or [samples, n] of a model without spaces"""
    about: dict[str, list[str]]
    """Columns by name; TensorBoard colours points by any of them."""


def wants_figures(epoch: int) -> bool:
    """Whether figures are drawn after this epoch, counted from 0."""
    done = epoch + 1
    return done & (done - 1) == 0


def figures(edges: Mapping[str, Tensor], prior: str, evaluation: Evaluation) -> dict[str, Figure]:
    """Figures by tag: edges {space: [6]} beside the prior of that kind, and predictions against labels;
    of a classifier the confusion, of emotions their shares and probabilities."""
    with rc_context(RC):  # type: ignore[arg-type]
        drawn = {"predictions": _predictions(evaluation)}
        if edges:
            priors = {space: make_prior(prior, space).numpy() for space in edges}
            means = {space: values.float().cpu().numpy() for space, values in edges.items()}
            drawn["edges_beside_prior"] = edge_heatmaps(means, priors, narrow=True)
    return drawn


def _predictions(evaluation: Evaluation) -> Figure:
    labels, fused, scoring = evaluation.labels, evaluation.predictions["fused"], evaluation.scoring
    if scoring.kind == "regression":
        return scatter(labels.numpy(), fused.numpy(), "validation: predicted against true", scoring)
    if scoring.kind == "classes":
        return confusion_figure(confusion(fused, labels).long().numpy(), scoring.titles)
    return emotion_figure(labels.numpy(), fused.sigmoid().numpy(), scoring.titles, narrow=True)


def config_text(config: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """Data and config as Markdown tables, one per section."""
    lines: list[str] = []
    for section, values in {"data of the run": info, **config}.items():
        rows = values.items() if isinstance(values, Mapping) else [("", values)]
        lines += [f"| {section} | |", "|---|---|", *(f"| {key} | {_plain(value)} |" for key, value in rows), ""]
    return "\n".join(lines)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def sample_features(
    system: TrainingSystem, reader: ShardReader, config: Config, device: torch.device
) -> list[Features]:
    """Representations that the GD-Units compare, and those of a model without them, of the first samples of the
    validation split; no collective."""
    was_training = system.training
    system.eval()
    parts: dict[str, list[Tensor]] = {}  # [M, B, n], M modalities, or one of all
    labels: list[Tensor] = []
    answers: list[Tensor] = []
    batches = evaluation_batches(reader, "valid", config.data, batch_size=BATCH_SIZE)
    with torch.inference_mode():
        for batch in batches:
            output = system.predict(batch.to(device))
            kept = batch.mask.flatten() > 0
            for space, reprs in (output.spaces or {FUSED: {FUSED: output.representation}}).items():
                parts.setdefault(space, []).append(torch.stack([of.float().cpu()[kept] for of in reprs.values()]))
            labels.append(system.scoring.in_units(system.targets(batch).flatten(0, 1)[kept]))
            answers.append(system.scoring.in_units(output.predictions["fused"].float().cpu()[kept]))
            if sum(map(len, labels)) >= FEATURE_SAMPLES:
                break
    system.train(was_training)
    label, answer = torch.cat(labels)[:FEATURE_SAMPLES], torch.cat(answers)[:FEATURE_SAMPLES]
    order = _by_label(label)
    names = reader.index.ids("valid", range(len(label)))
    of_samples = projector_columns(
        label[order], answer[order], [names[number] for number in order.tolist()], system.scoring
    )
    about = of_samples
    if system.objective.spaces:
        about = {"modality": [m for m in MODALITIES for _ in order]}
        about |= {name: column * len(MODALITIES) for name, column in of_samples.items()}
    return [Features(space, torch.cat(values, dim=1)[:, order].flatten(0, 1), about) for space, values in parts.items()]


def _by_label(label: Tensor) -> Tensor:
    """The order of labels [N] or [N, L]: TensorBoard gives colours to values in the order in which it meets them."""
    columns = label.reshape(len(label), -1).double().flip(1).T.numpy()
    return torch.from_numpy(np.lexsort(columns))


def _number(value: float) -> str:
    """A number as JavaScript writes it: the projector gives no colour of its own to one that it writes otherwise."""
    return f"{round(value, DIGITS) + 0.0:g}"


def projector_columns(label: Tensor, answer: Tensor, names: list[str], scoring: Scoring) -> dict[str, list[str]]:
    """What the projector is told of samples: numbers as numbers, classes and emotions by their names."""
    if scoring.kind == "regression":
        fine = [scoring.fine_classes[number] for number in scoring.to_fine_classes(label).tolist()]
        columns = {
            "label": [_number(value) for value in label.tolist()],
            "prediction": [_number(value) for value in answer.tolist()],
            "class": [name if name[-1].isalpha() else f"class {name}" for name in fine],
        }
    else:
        said = answer.argmax(1) if scoring.kind == "classes" else answer > 0
        columns = {
            "label": [scoring.describe(y) for y in label],
            "prediction": [scoring.describe(y) for y in said],
        }
    columns |= {"split": ["valid"] * len(names), "id": names}
    videos = [video_of(name) for name in names]
    if all(videos):
        columns["video"] = videos
    return columns
