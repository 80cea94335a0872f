"""Each loss against a plain double loop, and what a step may not do: wait for the device."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dmd.losses import Objective, ObjectiveConfig
from dmd.losses.distillation import logit_distillation, make_prior, representation_distillation
from dmd.losses.margin import distance_of_sets, margin_loss
from dmd.model import DMD, GDUnit, ModelConfig
from dmd.model.config import MODALITIES
from dmd.model.graph import PAIRS

LENGTHS = {"text": 5, "audio": 5, "vision": 5}
DIMS = {"text": 6, "audio": 5, "vision": 7}
CONFIG = ModelConfig(task="regression", dim=8, heads=2, levels=1, kernel_text=1, kernel_audio=1, kernel_vision=1)


def margin_by_loops(features: torch.Tensor, labels: torch.Tensor) -> float:
    """features [3, S, d], labels [S]: the definition in docs/published-code.md#margin."""
    rows = features.flatten(0, 1)
    label = labels.repeat(3).tolist()
    unit = rows / (rows.square().sum(-1, keepdim=True) + 1e-8).sqrt()
    cos = (unit @ unit.T).tolist()
    anchors = []
    for i in range(len(label)):
        positives = [j for j in range(len(label)) if j != i and label[j] == label[i]]
        negatives = [k for k in range(len(label)) if label[k] != label[i]]
        if positives and negatives:
            hinges = [
                max(0.0, 0.15 * abs(label[i] - label[k]) - cos[i][j] + cos[i][k])
                for j, k in itertools.product(positives, negatives)
            ]
            anchors.append(sum(hinges) / len(hinges))
    return sum(anchors) / len(anchors) if anchors else 0.0


def jaccard(one: list[float], other: list[float]) -> float:
    """Distance of two sets of emotions, in units of a sentiment (docs/tasks.md)."""
    first, second = ({place for place, has in enumerate(flags) if has} for flags in (one, other))
    return 3 * (1 - len(first & second) / len(first | second)) if first | second else 0.0


def test_the_margin_loss_of_emotions_compares_sets():
    generator = torch.Generator().manual_seed(8)
    features = torch.randn(2, 3, 6, 5, dtype=torch.float64, generator=generator)
    labels = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.float64)
    labels = torch.stack([labels, labels.flip(1)])
    rows = features.flatten(1, 2)
    unit = rows / (rows.square().sum(-1, keepdim=True) + 1e-8).sqrt()
    cosines = unit @ unit.transpose(1, 2)
    mask = torch.tensor([[1.0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    for ghost, (cos, sets) in enumerate(zip(cosines.tolist(), labels.tolist(), strict=True)):
        valid = [row for row in range(18) if mask[ghost, row % 6]]
        anchors = []
        for i in valid:
            apart = {k: jaccard(sets[i % 6], sets[k % 6]) for k in valid}
            positives, negatives = ([k for k in valid if (apart[k] == 0) == same and k != i] for same in (True, False))
            pairs = itertools.product(positives, negatives)
            hinges = [max(0.0, 0.15 * apart[k] - cos[i][j] + cos[i][k]) for j, k in pairs]
            anchors.append(sum(hinges) / len(hinges))
        found = margin_loss(features, labels, mask.double())[ghost]
        assert float(found) == pytest.approx(sum(anchors) / len(anchors))
    assert distance_of_sets(labels)[0, 3].tolist() == pytest.approx([3, 3, 1.5, 0, 0, 3])


@pytest.mark.parametrize("kind", ["mixed", "all equal", "all different", "one sample"])
def test_margin_loss(kind):
    size = 1 if kind == "one sample" else 7
    torch.manual_seed(3)
    features = torch.randn(2, 3, size, 5, dtype=torch.float64)
    labels = {
        "mixed": torch.tensor([[1, 1, -0.4, 0, 2.2, 0, 1]] * 2),
        "all equal": torch.ones(2, 7),
        "all different": torch.arange(14.0).view(2, 7) / 5,
        "one sample": torch.zeros(2, 1),
    }[kind].double()
    got = margin_loss(features, labels, torch.ones_like(labels))
    want = [margin_by_loops(features[g], labels[g]) for g in range(2)]
    assert got.tolist() == pytest.approx(want, rel=1e-10, abs=1e-12)
    if kind in ("all equal", "one sample"):
        assert want == [0, 0]
    else:
        assert min(want) > 0


def smooth_margin_by_loops(features: torch.Tensor, labels: torch.Tensor, smoothing: float) -> float:
    """The definition in the docstring of `margin_loss`."""
    rows = features.flatten(0, 1)
    label = labels.repeat(3).tolist()
    unit = rows / (rows.square().sum(-1, keepdim=True) + 1e-8).sqrt()
    cos = (unit @ unit.T).tolist()
    count, anchors = len(label), []
    for i in range(count):
        same = [max(0.0, 1 - abs(label[i] - other) / smoothing) for other in label]
        weighted = [
            (same[j] * (1 - same[k]), max(0.0, 0.15 * abs(label[i] - label[k]) - cos[i][j] + cos[i][k]))
            for j, k in itertools.permutations(range(count), 2)
            if j != i
        ]
        weight = sum(w for w, _ in weighted)
        if weight:
            anchors.append(sum(w * hinge for w, hinge in weighted) / max(1.0, weight))
    return sum(anchors) / len(anchors) if anchors else 0.0


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 4.0, 1000.0])
def test_smoothed_margin_loss(smoothing):
    torch.manual_seed(3)
    features = torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 1, -0.4, 0, 2.2, 0, 1], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.float64)
    got = margin_loss(features, labels, torch.ones_like(labels), smoothing=smoothing)
    want = [smooth_margin_by_loops(features.detach()[g], labels[g], smoothing) for g in range(2)]
    assert got.tolist() == pytest.approx(want, rel=1e-10, abs=1e-12)
    assert want[0] > want[1] == 0
    published = margin_loss(features, labels, torch.ones_like(labels))
    assert torch.equal(got, published) == (smoothing == 0.1), "no two labels here are nearer than 0.1"
    mask = torch.ones_like(labels)
    torch.autograd.gradcheck(lambda x: margin_loss(x, labels, mask, smoothing=smoothing), features)
    padded = torch.cat([features, torch.randn(2, 3, 2, 5, dtype=torch.float64)], dim=2)
    mask = torch.tensor([[1.0] * 7 + [0.0] * 2] * 2, dtype=torch.float64)
    again = margin_loss(padded, torch.nn.functional.pad(labels, (0, 2), value=0.9), mask, smoothing=smoothing)
    assert again.tolist() == pytest.approx(got.tolist(), rel=1e-10)


def test_priors():
    for space, strong in (("homo", 2), ("hetero", 3)):
        prior = make_prior("published", space)
        assert float(prior.sum()) == pytest.approx(1)
        assert int((prior > 0.3).sum()) == strong
        assert make_prior("uniform", space).tolist() == pytest.approx([1 / 6] * 6)
        assert make_prior("none", space).tolist() == [0] * 6
    assert float(make_prior("published", "homo")[PAIRS.index(("vision", "text"))]) == pytest.approx(0.4823, abs=1e-4)


def test_edges_sum_to_one():
    torch.manual_seed(0)
    unit = GDUnit(4, 3)
    logits = {m: torch.randn(5) for m in MODALITIES}
    edges = unit(logits, {m: torch.randn(5, 4) for m in MODALITIES})
    assert edges.shape == (5, 6)
    assert edges.sum(-1).tolist() == pytest.approx([1] * 5)


@pytest.mark.parametrize("distillation", [logit_distillation, representation_distillation])
@pytest.mark.parametrize("pair", range(len(PAIRS)), ids=["<-".join(pair) for pair in PAIRS])
def test_a_teacher_gets_no_gradient(distillation, pair):
    """Of the one pair that has any weight, the student alone has a gradient: that of the loss as a function of it."""
    torch.manual_seed(0)
    shape = (2, 5) if distillation is logit_distillation else (2, 5, 4)
    given = {m: torch.rand(shape, dtype=torch.float64, requires_grad=True) for m in MODALITIES}
    weight = torch.eye(len(PAIRS), dtype=torch.float64)[pair]
    edges, mask = torch.zeros(2, 5, len(PAIRS), dtype=torch.float64), torch.ones(2, 5, dtype=torch.float64)
    gradients = torch.autograd.grad(distillation(edges, weight, given, mask).sum(), list(given.values()))
    moved = {m for m, gradient in zip(given, gradients, strict=True) if gradient.abs().max() > 0}
    student = PAIRS[pair][0]
    assert moved == {student}
    torch.autograd.gradcheck(lambda x: distillation(edges, weight, {**given, student: x}, mask), given[student])


def build(**objective: object):
    torch.manual_seed(0)
    model, losses = DMD(CONFIG, DIMS, LENGTHS), Objective(ObjectiveConfig(**objective), CONFIG)
    parts = [torch.randn(8, 5, DIMS[m]) for m in MODALITIES]
    labels = torch.tensor([[1.0, -1, 1, 0], [0.4, 0.4, -2, 3]])
    return model, losses, parts, labels


def test_weights_and_switches_change_what_they_name_and_nothing_else():
    model, losses, parts, labels = build()
    base = losses(model(*parts), labels, torch.ones_like(labels))
    for change, touched in (
        ({"orthogonality": "feature"}, {"orthogonality", "total"}),
        # The published hetero prior trusts one direction of each pair: its two weights sum to a third, as uniform ones
        # do, so of the hetero distillation only the gradients differ.
        ({"prior": "uniform"}, {"homo_logit", "homo_regulariser", "hetero_regulariser", "total"}),
        (
            {"prior": "none"},
            {"homo_logit", "homo_regulariser", "hetero_logit", "hetero_regulariser", "hetero_representation", "total"},
        ),
        ({"decoupling_weight": 0.3}, {"total"}),
        ({"gamma": 0.0}, {"total"}),
        ({"margin_smoothing": 2.0}, {"margin", "total"}),
        ({"distillation_weight": 0.0}, {"total"}),
    ):
        model, losses, parts, labels = build(**change)
        terms = losses(model(*parts), labels, torch.ones_like(labels))
        changed = {name for name in base if not torch.allclose(base[name], terms[name], rtol=1e-6, atol=0)}
        assert changed == touched, change
    assert float(terms["total"].mean()) < float(base["total"].mean())


def test_without_a_prior_edges_are_not_regularised():
    model, losses, parts, labels = build(prior="none")
    terms = losses(model(*parts), labels, torch.ones_like(labels))
    assert terms["homo_regulariser"].tolist() == [0, 0]
    assert all(math.isfinite(value) for value in terms["total"].tolist())


class HostSyncs(TorchDispatchMode):
    """Counts the operations that would wait for a CUDA device."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.NAMES):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_the_objective_waits_for_no_device():
    """A whole step's waits are counted in `tests/dmd/kernels/test_launches.py`, in the form that CUDA runs."""
    model, losses, parts, labels = build()
    output = model(*parts)
    with HostSyncs() as syncs:
        losses(output, labels, torch.ones_like(labels))
        seen = list(syncs.found)
        assert torch.ones(1).item() == 1
    assert seen == []
    assert len(syncs.found) == 1, "the counter counts"
