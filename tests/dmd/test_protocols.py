"""Metrics of each protocol, in the units of the data: by hand, by scikit-learn, and as the published code says."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

from dmd.metrics import Scoring, head_metrics
from dmd.metrics.bins import to_bins
from dmd.metrics.emotions import weighted_accuracy

SIMS = Scoring(protocol="sims", scale=3.0)
FOUR = ("neutral", "happy", "sad", "angry")
TENTHS = torch.arange(-10, 11) / 10


def sims_by_masks(prediction: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """What thuiar/MMSA's `eval_sims_regression` says: masks between the edges of float32 arrays."""
    clipped = [np.clip(values.astype(np.float32), -1.0, 1.0) for values in (prediction, label)]
    bins = {}
    for edges in ([-1.01, 0.0, 1.01], [-1.01, -0.1, 0.1, 1.01], [-1.01, -0.7, -0.1, 0.1, 0.7, 1.01]):
        found = []
        for values in clipped:
            numbers = values.copy()
            for number, (low, high) in enumerate(itertools.pairwise(edges)):
                numbers[np.logical_and(values > np.float32(low), values <= np.float32(high))] = number
            found.append(np.round(numbers))
        bins[len(edges) - 1] = found
    return {
        "mae": np.abs(prediction - label).mean(),
        "mae_sims": np.abs(clipped[0] - clipped[1]).mean(),
        "corr_sims": np.corrcoef(*clipped)[0, 1],
        **{f"acc{count}_sims": (found[0] == found[1]).mean() for count, found in bins.items()},
        "f1_sims": f1_score(bins[2][1], bins[2][0], average="weighted"),
    }


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_sims_is_what_its_published_code_computes(shift):
    rng = np.random.default_rng(3)
    label = (rng.integers(-10, 11, 301) / 10).astype(np.float32)
    prediction = (label * 0.6 + rng.normal(size=301) / 2 + shift).astype(np.float32)
    prediction[:42] = np.tile(TENTHS.numpy(), 2)  # on the edges
    stored = [torch.from_numpy(values * np.float32(3)) for values in (prediction, label)]
    found = head_metrics(*map(SIMS.in_units, stored), SIMS)
    assert found == pytest.approx(sims_by_masks(prediction, label), rel=1e-6)


def test_bins_of_sims_are_closed_above():
    assert to_bins(TENTHS, 2).tolist() == [0] * 11 + [1] * 10
    assert to_bins(TENTHS, 3).tolist() == [0] * 10 + [1] * 2 + [2] * 9
    assert to_bins(TENTHS, 5).tolist() == [0] * 4 + [1] * 6 + [2] * 2 + [3] * 6 + [4] * 3
    for scale in (3.0, 0.3, 7.0):  # as float32 shards store them
        again = Scoring(scale=scale).in_units((TENTHS * scale).float())
        assert torch.equal(to_bins(again, 5), to_bins(TENTHS, 5))
    classes = Scoring(kind="classes", outputs=3, scale=3.0, classes_by="sims")
    assert torch.equal(classes.classes_of(TENTHS * 3), to_bins(TENTHS, 3))
    assert classes.titles == ["negative", "neutral", "positive"]


def test_sims_by_hand():
    """Labels and predictions in [-1, 1]; two of five on the other side of 0, of which 0 belongs to the lower."""
    prediction = torch.tensor([-0.9, 0.0, 0.3, 1.4, 0.2])
    label = torch.tensor([-0.8, 0.1, 0.6, 1.0, -0.2])
    found = head_metrics(prediction.double(), label.double(), SIMS)
    assert found["acc2_sims"] == pytest.approx(3 / 5)
    assert found["acc3_sims"] == pytest.approx(4 / 5)
    assert found["acc5_sims"] == pytest.approx(4 / 5)
    assert found["mae_sims"] == pytest.approx((0.1 + 0.1 + 0.3 + 0 + 0.4) / 5)
    assert found["mae"] == pytest.approx((0.1 + 0.1 + 0.3 + 0.4 + 0.4) / 5)
    assert found["f1_sims"] == pytest.approx((2 / 4) * 2 / 5 + (4 / 6) * 3 / 5)


def test_sentiments_are_measured_in_their_units_and_their_classes_on_the_scale_of_the_shards():
    """A scale from 0 to 10: 0 is -3, 5 is 0."""
    scoring = Scoring(scale=0.6, offset=5.0)
    stored = torch.tensor([[-3.0, 0.0, 0.6, 2.5, 1.2], [-2.5, 0.1, 1.8, 2.5, -1.2]])
    prediction, label = scoring.in_units(stored)
    assert label.tolist() == pytest.approx([0.8333333, 5.1666667, 8, 9.1666667, 3], rel=1e-6)
    assert scoring.limits == pytest.approx((0, 10))
    assert torch.equal(scoring.stored(label), stored[1]), "to the last bit"
    found, plain = head_metrics(prediction, label, scoring), head_metrics(*stored)
    assert found["mae"] == pytest.approx(plain["mae"] / 0.6)
    rest = {name: value for name, value in plain.items() if name != "mae"}
    assert {name: found[name] for name in rest} == pytest.approx(rest, rel=1e-12)
    assert Scoring().in_units(stored) is stored
    assert Scoring().stored(stored) is stored


def test_a_stored_sentiment_survives_its_units():
    """So a class at the edge of a bin is the same in every command."""
    stored = torch.cat([torch.arange(-30, 31) / 10, torch.randn(4000).clamp(-3, 3)]).float()
    for scale, offset in ((1.5, 3.0), (6 / 7, 4.0), (0.06, 50.0), (3.0, 0.0)):
        scoring = Scoring(scale=scale, offset=offset)
        assert torch.equal(scoring.stored(scoring.in_units(stored)), stored)


@pytest.mark.parametrize("protocol", ["iemocap", "emotions"])
def test_emotions_equal_scikit_learn(protocol):
    rng = np.random.default_rng(5)
    has = rng.random((97, 4)) < (0.1, 0.3, 0.5, 0.9)
    logits = rng.normal(size=(97, 4)) + has
    said, scoring = logits > 0, Scoring(kind="multilabel", protocol=protocol, outputs=4, names=FOUR)
    found = head_metrics(torch.from_numpy(logits), torch.from_numpy(has).float(), scoring)
    accuracy, score = ("wacc", balanced_accuracy_score) if protocol == "emotions" else ("acc", accuracy_score)
    wanted = {f"{accuracy}.{name}": score(has[:, i], said[:, i]) for i, name in enumerate(FOUR)}
    wanted |= {f"f1.{name}": f1_score(has[:, i], said[:, i], average="weighted") for i, name in enumerate(FOUR)}
    for kind in (accuracy, "f1"):
        wanted[f"{kind}_mean"] = np.mean([value for name, value in wanted.items() if name.startswith(f"{kind}.")])
    wanted["acc_each"] = (said == has).mean()
    odds = 1 / (1 + np.exp(-logits))
    wanted["binary_cross_entropy"] = np.mean([log_loss(has[:, i], odds[:, i]) for i in range(4)])
    assert found == pytest.approx(wanted)
    assert list(found) == [row.name for row in scoring.rows()]


def test_the_weighted_accuracy_is_that_of_its_paper():
    """(TP * N / P + TN) / 2N with P = 2, N = 6, TP = 1, TN = 5."""
    has = torch.tensor([1, 1, 0, 0, 0, 0, 0, 0]).bool()
    said = torch.tensor([1, 0, 1, 0, 0, 0, 0, 0]).bool()
    assert weighted_accuracy(said, has) == pytest.approx((1 * 6 / 2 + 5) / 12)
    for constant in (has | True, has & False):
        assert math.isnan(weighted_accuracy(said, constant))
    scoring = Scoring(kind="multilabel", protocol="emotions", outputs=2, names=("rare", "known"))
    labels = torch.stack([has & False, has], 1).float()
    found = head_metrics(torch.stack([said, said], 1).double() - 0.5, labels, scoring)
    assert math.isnan(found["wacc.rare"])
    assert found["wacc_mean"] == found["wacc.known"] == pytest.approx(8 / 12)


@pytest.mark.parametrize("protocol", ["iemocap", "meld"])
def test_classes_against_all_others_equal_scikit_learn(protocol):
    rng = np.random.default_rng(9)
    label, logits = rng.integers(0, 4, 83), rng.normal(size=(83, 4))
    guess = logits.argmax(1)
    scoring = Scoring(kind="classes", protocol=protocol, outputs=4, names=FOUR)
    found = head_metrics(torch.from_numpy(logits), torch.from_numpy(label), scoring)
    assert found["acc"] == pytest.approx(accuracy_score(label, guess))
    if protocol == "meld":
        assert found["f1_weighted"] == pytest.approx(f1_score(label, guess, average="weighted"))
        assert list(found) == ["acc", "f1_weighted", "cross_entropy"]
        return
    for number, name in enumerate(FOUR):
        assert found[f"acc.{name}"] == pytest.approx(accuracy_score(label == number, guess == number))
        assert found[f"f1.{name}"] == pytest.approx(f1_score(label == number, guess == number, average="weighted"))


def test_labels_that_are_no_emotions_are_rejected():
    scoring = Scoring(kind="multilabel", protocol="emotions", outputs=2, names=("a", "b"))
    for labels, message in (
        (torch.tensor([[0.5, 1.0]]), "neither 0 nor 1"),
        (torch.tensor([[math.nan, 1.0]]), "1 of 1 labels are not finite"),
        (torch.ones(1, 3), r"\[1, 2\] and \[1, 3\]"),
        (torch.ones(0, 2), "at least 1 sample"),
    ):
        with pytest.raises(ValueError, match=message):
            head_metrics(torch.zeros(len(labels), 2), labels, scoring)
    undefined = head_metrics(torch.tensor([[math.inf, 0.0]]), torch.ones(1, 2), scoring)
    assert all(math.isnan(value) for value in undefined.values())
