"""Baselines that a report computes itself, on the shards of its runs: the mean, and a linear model of pooled features.

A sample is what remains of its modalities without order: the mean over the unpadded steps of features, and how often
each token id occurs. Ridge regression predicts sentiments from that, logistic regression classes and each emotion
(scikit-learn). The penalty is the one of `PENALTIES` with the least error in a cross-validation on the training split,
whose folds keep the utterances of a video together.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from data_shards.format.schema import MODALITIES
from data_shards.places import PlaceLike
from data_shards.reading.reader import ShardReader
from dmd.config import Config
from dmd.inference.labels import shard_labels
from dmd.metrics import Scoring, head_metrics
from dmd.report.videos import video_of

TRAIN_SAMPLES = 4_000
"""Samples of a training split that are read at most, evenly spread over it."""
PENALTIES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)
"""Of squared weights, of features with a standard deviation of 1."""
FOLDS = 4
FEWEST_OCCURRENCES = 2
"""Training samples that a token id occurs in, to count."""
_BATCH = 256
_ITERATIONS = 200
Features: TypeAlias = Any
"""A sparse matrix of SciPy, whose types are not known."""


@dataclass(frozen=True, kw_only=True)
class SimpleBaseline:
    """What a baseline reaches on the split of a report."""

    name: str
    about: str
    """What it was made of."""
    metrics: dict[str, float]


def simple_baselines(data: PlaceLike, split: str, config: Config, scoring: Scoring) -> list[SimpleBaseline]:
    """The mean, and a linear model of pooled features, fitted on the training split of shards; none where the shards
    have no training split.

    Args:
        data: shards.
        split: on which they are measured.
        config: of a model; what it predicts.
        scoring: of the same model.

    Raises:
        ValueError: shards that are not there, or lack the split.
    """
    with ShardReader(data) as reader:
        if "train" not in reader.index.info.counts:
            return []
        count = reader.index.num_samples("train")
        chosen = np.unique(np.linspace(0, count - 1, min(TRAIN_SAMPLES, count)).astype(np.int64))
        train = _pooled(reader, "train", chosen, config, scoring)
        measured = _pooled(reader, split, np.arange(reader.index.num_samples(split)), config, scoring)
    groups = _videos(train.ids)
    features, others = _scaled(train, measured)
    of = f"{len(chosen)} of {count}" if len(chosen) < count else f"{count}"
    labels = torch.from_numpy(measured.labels)
    name = "ridge regression" if scoring.kind == "regression" else "logistic regression"
    penalty, answers = _fitted(features, train.labels, groups, others, scoring)
    found = [
        (
            "mean" if scoring.kind == "regression" else "base rates",
            "",
            _mean(train.labels, len(measured.labels), scoring),
        ),
        (name, f", penalty {penalty:g}{_at_an_end(penalty)}", answers),
    ]
    return [
        SimpleBaseline(
            name=title,
            about=f"{of} training samples{more}",
            metrics=head_metrics(torch.from_numpy(values), labels, scoring),
        )
        for title, more, values in found
    ]


@dataclass(frozen=True, kw_only=True)
class _Pooled:
    """N samples without the order of their steps."""

    means: NDArray[np.float64]
    """[N, D], of the features of all modalities"""
    counts: Features
    """[N, vocabulary], of token ids; [N, 0] without any"""
    labels: NDArray[np.float64]
    ids: list[str]


def _pooled(reader: ShardReader, split: str, positions: NDArray[np.int64], config: Config, scoring: Scoring) -> _Pooled:
    """Samples of a split, read in batches."""
    info = reader.index.info
    features = [m for m in MODALITIES if m != "text" or info.text_kind == "features"]
    means, counts, labels = list[NDArray[np.float64]](), list[Any](), list[NDArray[np.float64]]()
    for begin in range(0, len(positions), _BATCH):
        rows = positions[begin : begin + _BATCH]
        batch = reader.read(split, rows)
        lengths = dict(zip(MODALITIES, batch["lengths"].T, strict=True))
        means.append(np.concatenate([_mean_over_steps(batch[m], lengths[m]) for m in features], 1))
        if info.text_kind == "tokens":
            counts.append(_token_counts(batch["text"], info.vocab_size))
        labels.append(shard_labels(batch, config, scoring))
    return _Pooled(
        means=np.concatenate(means),
        counts=sparse.vstack(counts, format="csr") if counts else sparse.csr_array((len(positions), 0)),
        labels=np.concatenate(labels),
        ids=reader.index.ids(split, positions),
    )


def _mean_over_steps(values: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """[N, T, D] -> [N, D], over the steps that are not all zero, wherever the padding is; where these are more than the
    unpadded steps, over those of them that come first. 0 of none."""
    steps = values.any(-1)
    inside = np.arange(values.shape[1]) < lengths[:, None]
    steps &= inside | (steps.sum(1) <= lengths)[:, None]
    total = np.einsum("ntd,nt->nd", values, steps.astype(values.dtype)).astype(np.float64)
    return total / np.maximum(steps.sum(1), 1)[:, None]


def _token_counts(tokens: NDArray[np.int64], vocabulary: int) -> Features:
    """Ids, attention mask and types [N, 3, T] -> how often each sample has each id, [N, vocabulary]."""
    row, step = np.nonzero(tokens[:, 1])
    entries = (np.ones(len(row)), (row, tokens[row, 0, step]))
    return sparse.coo_array(entries, shape=(len(tokens), vocabulary)).tocsr()


def _videos(ids: Sequence[str]) -> NDArray[np.int64]:
    """A number for the video of each sample; a sample whose id names none is its own."""
    names = [video_of(name) or name for name in ids]
    return np.unique(names, return_inverse=True)[1]


def _scaled(train: _Pooled, measured: _Pooled) -> tuple[Features, Features]:
    """Features of both, with mean 0 (but of counts) and standard deviation 1 on the training split; constant ones and
    rare ids are left out."""
    from sklearn.preprocessing import StandardScaler

    used = np.flatnonzero((train.counts > 0).sum(0) >= FEWEST_OCCURRENCES)
    dense = StandardScaler().fit(train.means)
    varies = dense.var_ > 0
    ids = StandardScaler(with_mean=False).fit(train.counts[:, used]) if len(used) else None
    first, second = (
        sparse.hstack(
            [
                sparse.csr_array(dense.transform(part.means)[:, varies]),
                *([sparse.csr_array(ids.transform(part.counts[:, used]))] if ids is not None else []),
            ],
            format="csr",
        )
        for part in (train, measured)
    )
    return first, second


def _mean(labels: NDArray[np.float64], count: int, scoring: Scoring) -> NDArray[np.float64]:
    """What a model says that knows the labels of the training split alone: [count], or logits [count, outputs]. One
    sample of each class, or with and without each emotion, is added, so that no probability is 0."""
    if scoring.kind == "regression":
        return np.full(count, labels.mean())
    if scoring.kind == "classes":
        return np.tile(np.log(np.bincount(labels.astype(np.int64), minlength=scoring.outputs) + 1.0), (count, 1))
    with_it, without = labels.sum(0) + 1, (1 - labels).sum(0) + 1
    return np.tile(np.log(with_it / without), (count, 1))


def _fitted(
    features: Features,
    labels: NDArray[np.float64],
    groups: NDArray[np.int64],
    others: Features,
    scoring: Scoring,
) -> tuple[float, NDArray[np.float64]]:
    """The penalty with the least error in the cross-validation, and what the model says of other samples: sentiments
    [M], or logits [M, outputs]."""
    errors = {
        penalty: np.mean(
            [
                _error(_answers(features[rows], labels[rows], features[held], penalty, scoring), labels[held], scoring)
                for rows, held in _folds(groups)
            ]
        )
        for penalty in PENALTIES
    }
    penalty = min(errors, key=lambda one: errors[one])
    return penalty, _answers(features, labels, others, penalty, scoring)


def _at_an_end(penalty: float) -> str:
    """A hint where another penalty than those of `PENALTIES` might be better."""
    return {PENALTIES[0]: ", the least that was tried", PENALTIES[-1]: ", the largest that was tried"}.get(penalty, "")


def _folds(groups: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit on and rows to measure on."""
    from sklearn.model_selection import GroupKFold

    count = min(FOLDS, len(np.unique(groups)))
    if count > 1:
        yield from GroupKFold(count).split(groups, groups=groups)
    else:
        yield np.arange(len(groups)), np.arange(len(groups))


def _answers(
    features: Features, labels: NDArray[np.float64], others: Features, penalty: float, scoring: Scoring
) -> NDArray[np.float64]:
    """Sentiments [M], or logits [M, outputs], of a model that was fitted with a penalty."""
    from sklearn.linear_model import Ridge

    if scoring.kind == "regression":
        model = Ridge(alpha=penalty, solver="sparse_cg").fit(features, labels)
        return np.asarray(model.predict(others), dtype=np.float64)
    if scoring.kind == "classes":
        return _class_logits(features, labels.astype(np.int64), others, penalty, scoring.outputs)
    columns = [_class_logits(features, column.astype(np.int64), others, penalty, 2) for column in labels.T]
    return np.stack([logits[:, 1] - logits[:, 0] for logits in columns], 1)


def _class_logits(
    features: Features, labels: NDArray[np.int64], others: Features, penalty: float, classes: int
) -> NDArray[np.float64]:
    """Logarithms of probabilities [M, classes]; classes that no sample is of have that of one sample among all."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    logits = np.full((others.shape[0], classes), -np.log(len(labels) + 1.0))
    occurring = np.unique(labels)
    if len(occurring) == 1:
        logits[:, occurring] = 0.0
        return logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that is near its optimum is good enough
        model = LogisticRegression(C=1 / penalty, max_iter=_ITERATIONS).fit(features, labels)
    logits[:, occurring] = model.predict_log_proba(others)
    return logits


def _error(answers: NDArray[np.float64], labels: NDArray[np.float64], scoring: Scoring) -> float:
    """What the cross-validation compares: the mean absolute error, or the mean negative logarithm of the probability of
    what is so."""
    if scoring.kind == "regression":
        return float(np.abs(answers - labels).mean())
    if scoring.kind == "classes":
        return float(-answers[np.arange(len(labels)), labels.astype(np.int64)].mean())
    return float(np.logaddexp(0, np.where(labels > 0, -answers, answers)).mean())
