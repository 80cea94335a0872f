"""The paper's ablations and the switches of the objective: each changes what it should and nothing else."""

from dataclasses import replace

import pytest
import torch

from dmd.config.loading import load_config
from dmd.kernels.dropout.keys import number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.losses.constants import MARGIN_PER_LABEL
from dmd.losses import Objective, ObjectiveConfig
from dmd.losses.margin import margin_loss
from dmd.model import DMD, ModelConfig
from dmd.model.config import MODALITIES
from dmd.report.groups import Group, Measured
from dmd.report.tables import ablation_flags

DIMS, LENGTHS = {"text": 6, "audio": 3, "vision": 4}, {"text": 9, "audio": 9, "vision": 9}
OFF = {name: 0.0 for name in ModelConfig.__dataclass_fields__ if "dropout" in name}
PLAIN = ModelConfig(task="regression", dim=8, heads=2, levels=1, **OFF)


def build(model: ModelConfig = PLAIN, **objective: object) -> tuple[DMD, Objective]:
    torch.manual_seed(0)
    network = DMD(model, DIMS, LENGTHS)
    torch.manual_seed(1)
    return network, Objective(ObjectiveConfig(**objective), model)


def inputs(count: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {m: torch.randn(count, LENGTHS[m], DIMS[m], generator=generator) for m in MODALITIES}


def terms(network: DMD, objective: Objective) -> dict[str, torch.Tensor]:
    labels = torch.tensor([[-2.0, 1.0, 1.0, 0.0, 2.4, -2.0, 0.0, 1.0]])
    return objective(network(**inputs()), labels, torch.ones_like(labels))


def gradient(network: DMD, objective: Objective) -> dict[str, torch.Tensor]:
    terms(network, objective)["total"].sum().backward()
    named = [*network.named_parameters(), *objective.named_parameters(prefix="objective")]
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}


@pytest.mark.parametrize(
    "space, lost",
    [
        ("homo", ("homo_logit", "homo_regulariser")),
        ("hetero", ("hetero_logit", "hetero_representation", "hetero_regulariser")),
    ],
)
def test_without_a_distillation_its_terms_weigh_nothing(space, lost):
    full, without = terms(*build()), terms(*build(**{f"{space}_distillation": False}))
    for name in full:
        if name != "total":
            assert torch.equal(full[name], without[name]), name
    difference = 0.05 * sum(full[name] for name in lost)
    assert float(full["total"] - without["total"]) == pytest.approx(float(difference), rel=1e-4)
    gradients = gradient(*build(**{f"{space}_distillation": False}))
    for name, value in gradients.items():
        if name.startswith("objective.") and not name.endswith("edge.bias"):  # a softmax does not see that one
            assert (value.abs().sum() == 0) == name.startswith(f"objective.{space}."), name


def test_without_decoupling_there_are_no_encoders_and_no_decoupling_loss():
    full, without = build(), build(replace(PLAIN, decoupling=False))
    lost = set(full[0].state_dict()) - set(without[0].state_dict())
    assert lost == {name for name in full[0].state_dict() if name.startswith("decoupler.")}
    output = without[0](**inputs())
    for m in MODALITIES:
        assert output.decoupled.shared[m] is output.decoupled.private[m] is output.decoupled.origin[m]
    found = terms(*without)
    kept = sum(value for name, value in found.items() if name.startswith("task_"))
    kept += 0.05 * sum(value for name, value in found.items() if name.startswith(("homo_", "hetero_")))
    assert found["total"].detach() == pytest.approx(kept.detach(), rel=1e-5)


def test_without_crossmodal_attention_a_memory_sees_its_own_modality_alone():
    full, without = build(), build(replace(PLAIN, crossmodal=False))
    lost = set(full[0].state_dict()) - set(without[0].state_dict())
    assert lost
    assert all(name.startswith("crossmodal_encoders.") for name in lost)
    changed = inputs() | {"audio": torch.ones(8, LENGTHS["audio"], DIMS["audio"])}
    for (network, _), stays in ((without, True), (full, False)):
        before, after = network(**inputs()), network(**changed)
        assert torch.equal(before.hetero_repr["text"], after.hetero_repr["text"]) == stays
        assert not torch.equal(before.hetero_repr["audio"], after.hetero_repr["audio"])


def test_a_constant_margin_is_the_margin_of_equal_distances():
    features = torch.randn(1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 4)
    two = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    published = margin_loss(features, two, mask)
    assert margin_loss(features, two, mask, constant=2 * MARGIN_PER_LABEL) == pytest.approx(published)
    many = torch.tensor([[1.0, -1.0, 1.0, 2.6]])
    assert margin_loss(features, many, mask, constant=0.3) != pytest.approx(margin_loss(features, many, mask))
    full, constant = terms(*build()), terms(*build(margin="constant", margin_constant=0.3))
    changed = {name for name in full if not torch.equal(full[name], constant[name])}
    assert changed == {"margin", "total"}


def test_modality_dropout_zeroes_whole_modalities_in_training_alone():
    model = replace(PLAIN, modality_dropout=0.5)
    network, plain = build(model)[0], build()[0]
    batch = inputs(64)
    rng = DropoutRNG(seed=0, step=0, samples=number_samples([0], range(64)), device=torch.device("cpu"))
    trained = network(**batch, rng=rng).decoupled.origin
    clean = plain(**batch).decoupled.origin
    lost = {m: (trained[m] == 0).all(-1).all(-1) for m in MODALITIES}
    for m in MODALITIES:
        assert 15 < int(lost[m].sum()) < 50
        assert torch.equal(trained[m][~lost[m]], clean[m][~lost[m]])
    assert any((lost["text"] != lost[m]).any() for m in ("audio", "vision"))
    assert torch.equal(network(**batch).predictions["fused"], plain(**batch).predictions["fused"])


def test_defaults_are_the_published_objective():
    config = load_config("mosi-aligned")
    flags = ablation_flags(_group(config))
    assert flags == (True, True, True, True)
    off = ("model.decoupling", "objective.homo_distillation", "model.crossmodal", "objective.hetero_distillation")
    switched = load_config("mosi-aligned", [f"{key}=false" for key in off])
    assert ablation_flags(_group(switched)) == (False, False, False, False)
    assert config.objective.margin == "label_distance"
    assert config.model.modality_dropout == 0


def _group(config: object) -> Group:
    from pathlib import Path

    from dmd.config.loading import config_to_dict
    from dmd.report.runs import RunRecord

    run = RunRecord(path=Path(), name="", config=config_to_dict(config), info={}, sessions=[], curves={})
    return Group(name="", members=(Measured(run=run, result=None),))


def test_impossible_values_are_rejected():
    for override, message in (
        ("model.modality_dropout=1", "model.modality_dropout is 1"),
        ("objective.margin_constant=-1", "objective.margin_constant is -1"),
        ("objective.margin=wide", "objective.margin is 'wide'"),
    ):
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            load_config(None, [override])
