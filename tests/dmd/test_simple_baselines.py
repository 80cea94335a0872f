"""Baselines that a report computes: what they are made of, against scikit-learn and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from data_shards.labels import Labels
from data_shards.reading.reader import ShardReader
from data_shards.sources.synthetic import SyntheticSource
from data_shards.writing.build import build
from dmd.config.loading import load_config
from dmd.metrics import Scoring, head_metrics
from dmd.report import simple_baselines as module
from dmd.report.simple_baselines import _at_an_end, _mean_over_steps, _token_counts, _videos, simple_baselines


def test_steps_are_pooled_without_padding_at_either_end():
    values = np.zeros((4, 5, 2), dtype=np.float32)
    values[0, :2] = [[1, 2], [3, 4]]  # padded behind
    values[1, 3:] = [[1, 2], [3, 4]]  # padded in front
    values[2] = 9  # padded by other numbers behind the second step
    values[2, :2] = [[1, 2], [3, 4]]
    pooled = _mean_over_steps(values, np.array([2, 2, 2, 0]))
    assert pooled.tolist() == [[2, 3]] * 3 + [[0, 0]]


def test_tokens_are_counted_where_the_mask_has_them():
    tokens = np.array([[[7, 3, 7, 0], [1, 1, 1, 0], [0, 0, 0, 0]], [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]])
    counts = _token_counts(tokens, 9).toarray()
    assert counts[0].tolist() == [0, 0, 0, 1, 0, 0, 0, 2, 0]
    assert counts[1].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_utterances_of_a_video_are_one_fold_however_ids_are_written():
    assert _videos(["b$_$1", "a$_$0", "b$_$2"]).tolist() == [1, 0, 1]
    assert _videos(["b[1]", "a[0]", "b[2]"]).tolist() == [1, 0, 1]
    assert _videos(["1", "0", "2"]).tolist() == [1, 0, 2], "ids without a video"


def test_a_penalty_at_an_end_is_told():
    ends = [_at_an_end(penalty) for penalty in module.PENALTIES]
    assert ends == [", the least that was tried", "", "", "", ", the largest that was tried"]


def test_sentiments(shards):
    config = load_config(None, ["model.task=regression"])
    mean, ridge = simple_baselines(shards, "valid", config, Scoring())
    assert (mean.name, ridge.name) == ("mean", "ridge regression")
    with ShardReader(shards) as reader:
        train, valid = (reader.read(split, range(reader.index.num_samples(split))) for split in ("train", "valid"))
    labels = torch.from_numpy(valid["label"].astype(np.float64))
    constant = torch.full_like(labels, float(train["label"].astype(np.float64).mean()))
    assert mean.metrics == pytest.approx(head_metrics(constant, labels), nan_ok=True)
    assert math.isnan(mean.metrics["corr"])

    def pooled(batch) -> np.ndarray:
        lengths = batch["lengths"].T
        return np.concatenate(
            [_mean_over_steps(batch[m], n) for m, n in zip(("text", "audio", "vision"), lengths, strict=True)], 1
        )

    features, others = pooled(train), pooled(valid)
    center, scale = features.mean(0), features.std(0)
    penalty = float(ridge.about.partition("penalty ")[2].partition(",")[0])
    assert ridge.about == f"{len(features)} training samples, penalty {penalty:g}{_at_an_end(penalty)}"
    model = Ridge(alpha=penalty).fit((features - center) / scale, train["label"])
    answers = torch.from_numpy(model.predict((others - center) / scale).astype(np.float64))
    assert ridge.metrics["mae"] == pytest.approx(head_metrics(answers, labels)["mae"], abs=1e-3)


def test_classes_and_emotions(tmp_path, shards, monkeypatch):
    """The majority class, base rates, and logistic regression that beats them on the cross entropy of its own training
    samples; of few samples that are read, the number is told."""
    scoring = Scoring(kind="classes", protocol="classes", outputs=3, classes_by="mosi")
    config = load_config(None, ["model.task=3"])
    rates, logistic = simple_baselines(shards, "train", config, scoring)
    assert (rates.name, logistic.name) == ("base rates", "logistic regression")
    with ShardReader(shards) as reader:
        labels = np.sign(reader.read("train", range(reader.index.num_samples("train")))["label"])
    assert rates.metrics["acc"] == pytest.approx(max((labels == sign).mean() for sign in (-1, 0, 1)))
    assert logistic.metrics["cross_entropy"] < rates.metrics["cross_entropy"]
    monkeypatch.setattr(module, "TRAIN_SAMPLES", 20)
    few = simple_baselines(shards, "valid", config, scoring)
    assert few[0].about == f"20 of {len(labels)} training samples"

    names = ("happy", "sad", "angry")
    source = SyntheticSource(samples=60, steps=20, labels="emotions")
    build(source, tmp_path / "emotions", labels=Labels(emotions=names))
    scoring = Scoring(kind="multilabel", protocol="emotions", outputs=len(names), names=names)
    config = load_config(None, ["model.task=multilabel", "data.classes=emotions"])
    rates, logistic = simple_baselines(tmp_path / "emotions", "train", config, scoring)
    assert rates.metrics["wacc_mean"] == pytest.approx(0.5), "one answer for all"
    assert logistic.metrics["binary_cross_entropy"] < rates.metrics["binary_cross_entropy"]


def test_token_ids(tmp_path):
    build(SyntheticSource(samples=60, steps=20, text_kind="tokens"), tmp_path / "shards")
    _, ridge = simple_baselines(tmp_path / "shards", "valid", load_config(None, ["model.task=regression"]), Scoring())
    assert all(map(math.isfinite, ridge.metrics.values()))
