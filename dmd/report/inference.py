"""A run's best checkpoint on a split: predictions of all heads, edges per sample, and features to look at."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_shards.places import PlaceLike, to_place
from data_shards.reading.reader import ShardReader
from dmd.inference.export import load
from dmd.inference.inputs import read_samples
from dmd.metrics import Scoring, head_metrics
from dmd.model.config import MODALITIES
from dmd.system.trained_model import Prediction, TrainedModel, join

FEATURE_SAMPLES = 400
"""Samples whose features are kept, evenly spread over the split (Fig. 4 of the paper shows 400)."""


@dataclass(frozen=True, kw_only=True)
class SplitResult:
    """What a model says about the N samples of a split."""

    split: str
    ids: list[str]
    labels: NDArray[np.float64]
    """[N], sentiments in the units of the model's data or class numbers; [N, L], emotions"""
    predictions: dict[str, NDArray[np.floating]]
    """{head: [N], or logits [N, outputs]}"""
    edges: dict[str, NDArray[np.float32]]
    """{space: [N, 6]}; {} of a model without GD-Units"""
    features: dict[str, NDArray[np.float32]]
    """{space: [3, F, n]}, the representations that the GD-Units compare, of F samples;
    {} of a model without GD-Units."""
    feature_labels: NDArray[np.float64]
    """[F], or [F, L]"""
    metrics: dict[str, dict[str, float]]
    """{head: {metric: value}}"""
    answers: NDArray[Any]
    """[N], the fused head's sentiments or classes; [N, L], its emotions"""
    probabilities: NDArray[np.floating]
    """[N, outputs], of the fused head's classes or emotions; [N, 0] of a regression"""
    scoring: Scoring = field(default_factory=Scoring)
    texts: Sequence[str] = ()
    """[N], empty where the shards have none"""
    steps: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    """{modality: [N]}, unpadded steps"""
    titles: Mapping[str, str] = field(default_factory=dict)
    """{head: what tables call it}"""
    spread: NDArray[np.floating] | None = None
    """[N], or [N, outputs]: standard deviation over the members of an ensemble, see `Prediction.spread`"""

    @property
    def prediction(self) -> Prediction:
        """The same as a model gives it."""
        return Prediction(
            heads={head: torch.from_numpy(values) for head, values in self.predictions.items()},
            edges={space: torch.from_numpy(values) for space, values in self.edges.items()},
            scoring=self.scoring,
            spread=None if self.spread is None else torch.from_numpy(self.spread),
        )


def probabilities_of(prediction: Prediction) -> NDArray[np.floating]:
    """[N, outputs] of the fused head; [N, 0] of a regression."""
    if prediction.scoring.kind == "regression":
        return np.empty((len(prediction.heads["fused"]), 0))
    return prediction.probabilities.numpy()


def run_split(model: TrainedModel, data: PlaceLike, split: str) -> SplitResult:
    """Run a model over a split of shards, once.

    Raises:
        ValueError: shards that are not there, lack the split, or do not fit the model.
    """
    parts, reprs = [], dict[str, list[Tensor]]()
    ids: list[str] = []
    texts: list[str] = []
    labels: list[NDArray[np.float64]] = []
    for samples in read_samples(data, model.card, splits=[split]):
        output = model.output(samples.inputs)
        parts.append(model.read(output))
        for space, of in output.spaces.items():
            reprs.setdefault(space, []).append(torch.stack([of[m].float().cpu() for m in MODALITIES]))
        ids += samples.ids
        texts += samples.texts
        labels.append(samples.labels)
    prediction, label, scoring = join(parts), np.concatenate(labels), model.modules.scoring
    kept = np.unique(np.linspace(0, len(label) - 1, min(FEATURE_SAMPLES, len(label))).astype(int))
    return SplitResult(
        split=split,
        ids=ids,
        labels=label,
        predictions={head: values.numpy() for head, values in prediction.heads.items()},
        edges={space: edges.numpy() for space, edges in prediction.edges.items()},
        features={space: torch.cat(values, dim=1).numpy()[:, kept] for space, values in reprs.items()},
        feature_labels=label[kept],
        metrics={
            head: head_metrics(values, torch.from_numpy(label), scoring) for head, values in prediction.heads.items()
        },
        answers=prediction.answers("fused").numpy(),
        probabilities=probabilities_of(prediction),
        scoring=scoring,
        texts=texts,
        steps=_steps(data, split),
        titles={name: head.title for name, head in model.modules.network.heads.items()},
    )


def load_and_run_splits(
    run: Path, data: PlaceLike, splits: Iterable[str], *, text_encoder: str | None = None
) -> dict[str, SplitResult]:
    """`run_split` of some splits with the best checkpoint of a run, and its text encoder's own weights at
    `text_encoder`; the model is loaded once."""
    model = load(run, text_encoder=text_encoder)
    return {split: run_split(model, data, split) for split in splits}


def splits_of(data: PlaceLike) -> list[str]:
    """The splits of shards. Raises ValueError where they are not there."""
    with ShardReader(to_place(data)) as reader:
        return list(reader.index.info.counts)


def _steps(data: PlaceLike, split: str) -> dict[str, NDArray[np.int64]]:
    """Unpadded steps of each modality [N], as the index has them."""
    with ShardReader(to_place(data)) as reader:
        index = reader.index
        lengths = index.records(split, range(index.num_samples(split)))["length"].astype(np.int64)  # [N, modalities]
    return {modality: lengths[:, number] for number, modality in enumerate(MODALITIES)}
