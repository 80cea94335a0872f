"""Label distribution smoothing: densities, weights of the mean 1, and which losses they weigh."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_shards.reading.index import ShardIndex
from dmd.config.loading import load_config
from dmd.data.label_density import check_label_density, label_weights
from dmd.data.targets import resolve_task
from dmd.losses import ObjectiveConfig
from dmd.losses.label_weights import (
    BINS_IN_WIDTH,
    FEWEST,
    MOST_BINS,
    MOST_RATIO,
    LabelWeights,
    of_classes,
    of_sentiments,
)
from dmd.losses.model_objective import FUSED_ERROR
from dmd.model.dmd import HEADS
from tests.support.small_system import make_batch, make_system

WIDTH = 0.5


def skewed() -> torch.Tensor:
    """Labels of which low ones are rare, on the grid of CMU-MOSI's means over annotators."""
    generator = torch.Generator().manual_seed(0)
    return ((torch.randn(2000, generator=generator) + 1).clamp(-3, 3) * 5).round() / 5


def weights_of(labels: torch.Tensor, width: float = WIDTH) -> LabelWeights:
    return of_sentiments(labels.split(300), low=float(labels.min()), high=float(labels.max()), width=width)


def test_a_sentiment_weighs_the_inverse_of_the_smoothed_density():
    labels = skewed()
    weights = weights_of(labels)(labels)
    assert float(weights.double().mean()) == pytest.approx(1, abs=1e-6)
    values = labels.double().numpy()
    density = np.exp(-(((values[:, None] - values) / WIDTH) ** 2) / 2).mean(1)
    wanted = (1 / density) / (1 / density).mean()
    np.testing.assert_allclose(weights.numpy(), wanted, rtol=2e-3)  # the kernel ends at four widths
    assert weights[labels < -2].min() > 5 * weights[(labels - 1).abs() < 0.5].max()


def test_wide_kernels_weigh_all_alike_and_labels_beyond_the_ends_weigh_as_these():
    labels = skewed()
    assert float((weights_of(labels, 1000.0)(labels) - 1).abs().max()) < 1e-3
    weights = weights_of(labels)
    assert weights(torch.tensor([-9.0, 9.0])).equal(weights(torch.tensor([-3.0, 3.0])))


def test_each_class_that_occurs_weighs_the_same_in_all():
    numbers = torch.tensor([0.0] * 12 + [2.0] * 6 + [1.0] * 12)
    weights = of_classes([numbers[:20], numbers[20:]], 4)(numbers)
    assert float(weights.mean()) == pytest.approx(1)
    torch.testing.assert_close(weights, torch.tensor([30 / 3 / 12] * 12 + [30 / 3 / 6] * 6 + [30 / 3 / 12] * 12))


def test_no_weight_is_without_bound():
    """A lone label or class counts as FEWEST of it, and where there are very many others as one in MOST_RATIO."""
    for common in (1000, 1_000_000):
        fewest = max(FEWEST, common / MOST_RATIO)
        labels = torch.cat([torch.zeros(common), torch.tensor([3.0])])
        for weights in (weights_of(labels, 0.1), of_classes([labels], 4)):
            least, largest = weights.span()
            assert largest / least == pytest.approx(common / fewest)
            assert weights(labels[-1:]).item() == largest <= MOST_RATIO
            assert float(weights(labels).double().mean()) == pytest.approx(1, abs=1e-5)


def test_a_kernel_that_is_far_too_narrow_is_rejected():
    labels = skewed()
    with pytest.raises(
        ValueError, match=r"is 1e-05, far too narrow for labels from -2\.2 to 3; give .*, such as 0\.4, or 0"
    ):
        weights_of(labels, 1e-5)
    least = float(labels.max() - labels.min()) * BINS_IN_WIDTH / MOST_BINS
    assert float(weights_of(labels, 1.01 * least)(labels).mean()) == pytest.approx(1, abs=1e-4)


def test_the_train_split_alone_is_counted_and_no_weight_is_saved(shards):
    index = ShardIndex.load(shards)
    labels = torch.from_numpy(index.records("train", range(index.num_samples("train")))["label"].astype(np.float32))
    config = resolve_task(load_config(None, [f"objective.label_density_smoothing={WIDTH}"]), index.info)
    found = label_weights(config, index)
    assert found is not None
    assert found(labels).equal(weights_of(labels)(labels))
    assert not found.state_dict()
    classes = label_weights(replace(config, model=replace(config.model, task=3)), index)
    assert classes is not None
    assert len(classes.get_buffer("weights")) == 3
    assert label_weights(replace(config, objective=ObjectiveConfig()), index) is None


def test_a_width_is_checked_without_reading_a_label(shards):
    index = ShardIndex.load(shards)
    for width in (0.0, WIDTH, 1e-5):
        config = resolve_task(load_config(None, [f"objective.label_density_smoothing={width}"]), index.info)
        if width == 1e-5:
            for check in (check_label_density, label_weights):
                with pytest.raises(ValueError, match="far too narrow for labels from"):
                    check(config, index)
            config = replace(config, model=replace(config.model, task=3))
        check_label_density(config, index)


def test_emotions_have_no_density():
    with pytest.raises(ValueError, match="but the model learns emotions, of which a sample has any number"):
        load_config(None, ["model.task=multilabel", "model.emotions=2", "objective.label_density_smoothing=1"])


def test_task_losses_are_weighted_and_nothing_else_is():
    terms = []
    batch = make_batch(0, "cpu")
    for objective in (ObjectiveConfig(), ObjectiveConfig(label_density_smoothing=WIDTH)):
        system, _ = make_system("plain", "cpu", objective=objective)
        if objective.label_density_smoothing:
            system.objective.label_weights = weights_of(batch.labels.flatten().repeat(20))
            assert not system.objective.known_to_kernels
        system.eval()
        terms.append(system.terms(batch, None))
        output = system.predict(batch)
    plain, weighted = terms
    of = weights_of(batch.labels.flatten().repeat(20))(batch.labels)
    assert of.unique().numel() > 1
    for name, term in weighted.items():
        if name.startswith("task_"):
            errors = (output.predictions[name.removeprefix("task_")].view_as(batch.labels) - batch.labels).abs()
            torch.testing.assert_close(term, (errors * of).mean(1), msg=name)
        elif name == FUSED_ERROR.name:
            torch.testing.assert_close(term, plain["task_fused"])
        elif name != "total":
            assert term.equal(plain[name]), name
    assert FUSED_ERROR.name in weighted
    change = sum((weighted[f"task_{head}"] - plain[f"task_{head}"] for head in HEADS), torch.zeros(()))
    torch.testing.assert_close(weighted["total"] - plain["total"], change)
