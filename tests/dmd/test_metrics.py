"""Metrics against scikit-learn, the published figures, and the edges of their definition."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from dmd.metrics import head_metrics

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"


def reference(prediction: np.ndarray, label: np.ndarray) -> dict[str, float]:
    def classes(values, bound):
        return np.round(np.clip(values, -bound, bound)).astype(int)

    nonzero = label != 0
    binary = {"has0": (prediction >= 0, label >= 0), "non0": (prediction[nonzero] > 0, label[nonzero] > 0)}
    return {
        "mae": np.abs(prediction - label).mean(),
        "corr": np.corrcoef(prediction, label)[0, 1],
        **{f"acc{2 * b + 1}": accuracy_score(classes(label, b), classes(prediction, b)) for b in (3, 2, 1)},
        **{f"acc2_{name}": accuracy_score(truth, guess) for name, (guess, truth) in binary.items()},
        **{f"f1_{name}": f1_score(truth, guess, average="weighted") for name, (guess, truth) in binary.items()},
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shift", [-4.0, 0.0, 4.0])
def test_metrics_equal_scikit_learn(seed, shift):
    rng = np.random.default_rng(seed)
    label = rng.integers(-15, 16, size=257) / 5
    prediction = label * 0.7 + rng.normal(size=257) + shift
    prediction[:20] = rng.integers(-6, 7, size=20) / 2  # halves: the rounding rule, and exact zeros
    ours = head_metrics(torch.from_numpy(prediction), torch.from_numpy(label))
    assert ours == pytest.approx(reference(prediction, label), rel=1e-12)


def test_metrics_equal_the_published_figures():
    golden = np.load(GOLDEN)
    ours = head_metrics(torch.from_numpy(golden["pred"]), torch.from_numpy(golden["label"]))
    published = {"acc2_non0": "Acc_2", "f1_non0": "F1_score", "acc7": "Acc_7", "mae": "MAE"}
    assert {name: round(ours[name], 4) for name in published} == {n: float(golden[k]) for n, k in published.items()}


def test_halves_round_to_even():
    prediction, label = torch.tensor([0.5, 1.5, 2.5, -0.5]), torch.tensor([0.0, 2.0, 2.0, 0.0])
    assert head_metrics(prediction, label)["acc7"] == 1.0


def test_half_precision_is_read_exactly_and_stays_out_of_the_sums():
    label = torch.linspace(-3, 3, 3001).bfloat16()
    prediction = label.flip(0)
    assert head_metrics(prediction, label) == pytest.approx(
        reference(prediction.double().numpy(), label.double().numpy()), rel=1e-12
    )


def test_without_a_nonzero_label_non0_is_undefined():
    metrics = head_metrics(torch.tensor([0.1, -0.1]), torch.zeros(2))
    assert math.isnan(metrics["acc2_non0"])
    assert math.isnan(metrics["f1_non0"])
    assert metrics["acc2_has0"] == 0.5


@pytest.mark.parametrize("constant", [0.1, 1 / 3, -2.7])
def test_constant_predictions_have_no_correlation(constant):
    metrics = head_metrics(torch.full((1001,), constant), torch.linspace(-3, 3, 1001))
    assert math.isnan(metrics["corr"])
    assert math.isfinite(metrics["f1_has0"])


def test_one_sample():
    metrics = head_metrics(torch.tensor([1.2]), torch.tensor([1.0]))
    assert math.isnan(metrics.pop("corr"))
    assert metrics.pop("mae") == pytest.approx(0.2)
    assert set(metrics.values()) == {1.0}


def test_a_nonfinite_prediction_makes_every_metric_undefined():
    metrics = head_metrics(torch.tensor([math.nan, -1.0]), torch.tensor([-1.0, -1.0]))
    assert len(metrics) == 9
    assert all(math.isnan(value) for value in metrics.values())


@pytest.mark.parametrize(
    "prediction, label, message",
    [
        (torch.zeros(0), torch.zeros(0), "at least 1"),
        (torch.zeros(3), torch.zeros(4), r"\[3\] and \[4\]"),
        (torch.zeros(3, 1), torch.zeros(3, 1), "1-D"),
        (torch.zeros(2), torch.tensor([0.0, math.inf]), "1 of 2 labels"),
    ],
)
def test_bad_input_is_named(prediction, label, message):
    with pytest.raises(ValueError, match=message):
        head_metrics(prediction, label)
