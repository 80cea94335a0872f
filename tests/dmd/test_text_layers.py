"""Layers of a text encoder: run again in backward instead of kept, and learning rates that decay by layer."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dmd.config.loading import load_config
from dmd.model.lora import LoraSettings
from dmd.model.text import TextEncoder, build_text_encoder
from dmd.model.text_depth import depths
from dmd.system.cuda_graph import obstacle_to_capture
from dmd.system.system import TrainingSystem, parameter_groups
from dmd.training.schedule import Schedule
from tests.support.encoders import KINDS

LORA = LoraSettings(rank=2, targets="default", alpha=4, dropout=0.2)


def tokens() -> torch.Tensor:
    """[4, 3, 12] tokens, the last sample padded."""
    ids = torch.randint(2, 100, (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[3, 5:] = 0
    return torch.stack([ids, mask, torch.zeros_like(ids)], dim=1)


def passed(encoder: TextEncoder) -> tuple[list[torch.Tensor], torch.Tensor, int]:
    """Gradients of a pass in training mode, the state of torch's generator behind it, and bytes kept for backward."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(5)
    encoder.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = encoder(tokens()).square().sum()
    loss.backward()
    gradients = [p.grad for p in encoder.parameters() if p.requires_grad]
    return gradients, torch.get_rng_state(), sum(kept.values())


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_run_again_give_bitwise_the_same_gradients(kind, lora):
    sides = []
    for again in (False, True):
        torch.manual_seed(0)
        encoder = build_text_encoder(
            KINDS[kind] | {"num_hidden_layers": 4, "layer_types": None}, frozen=False, lora=lora
        )
        if again:
            encoder.checkpoint_gradients()
        sides.append(passed(encoder))
    (plain, after, kept), (recomputed, after_again, kept_again) = sides
    assert len(plain) >= 8
    assert [torch.equal(one, other) for one, other in zip(plain, recomputed, strict=True)] == [True] * len(plain)
    assert any(bool(gradient.any()) for gradient in plain)
    assert torch.equal(after, after_again), "dropout of a next pass is the same"
    assert kept_again < 0.6 * kept


def test_what_cannot_run_again_is_rejected():
    with pytest.raises(ValueError, match=r"text\.gradient_checkpointing and text\.frozen are true"):
        load_config(None, ["text.frozen=true", "text.gradient_checkpointing=true"])
    encoder = build_text_encoder(KINDS["bert"], frozen=False)
    type(encoder.network).supports_gradient_checkpointing, before = False, True
    try:
        with pytest.raises(ValueError, match="type 'bert' has no gradient checkpointing"):
            encoder.checkpoint_gradients()
    finally:
        type(encoder.network).supports_gradient_checkpointing = before


def test_no_pass_is_captured_that_sets_the_generator_back():
    config = load_config(None, ["train.cuda_graph=auto", "text.gradient_checkpointing=true"])
    backend = SimpleNamespace(name="fused")
    cuda = torch.device("cuda")
    assert "text.gradient_checkpointing is on" in obstacle_to_capture(config, cuda, backend, encodes_text=True)
    assert obstacle_to_capture(config, cuda, backend, encodes_text=False) == "", "shards of features have no encoder"
    plain = replace(config, text=replace(config.text, gradient_checkpointing=False))
    assert obstacle_to_capture(plain, cuda, backend, encodes_text=True) == ""


@pytest.mark.parametrize("how", ["8bit", "4bit"])
def test_no_pass_over_quantised_layers_is_captured(how):
    config = load_config(None, ["train.cuda_graph=auto", f"text.quantize={how}", "text.lora_rank=2"])
    obstacle = obstacle_to_capture(config, torch.device("cuda"), SimpleNamespace(name="fused"), encodes_text=True)
    assert obstacle.startswith(f"text.quantize is '{how}'")


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_the_depth_of_its_layer(kind, lora):
    encoder = build_text_encoder(KINDS[kind], frozen=False, lora=lora)
    found = depths(encoder.network)
    assert found.keys() == dict(encoder.network.named_parameters()).keys()
    lists = {"bert": "encoder.layer", "gpt2": "h", "qwen2": "layers"}
    place = lists.get(kind, "encoder.layer")
    for name, depth in found.items():
        if name.startswith(f"{place}."):
            assert depth == int(name.removeprefix(f"{place}.").split(".")[0]) + 1, name
        elif "embed" in name.lower() or name.startswith(("wte", "wpe")):
            assert depth == 0, name
        else:
            assert depth == 2, name
    assert set(found.values()) == {0, 1, 2}


def system_of(kind: str, *overrides: str) -> tuple[TrainingSystem, list[dict[str, object]]]:
    config = load_config(None, ["model.task=regression", "model.dim=8", "model.heads=2", "model.levels=1", *overrides])
    info = SimpleNamespace(
        dims={"text": 0, "audio": 5, "vision": 6}, lengths=dict.fromkeys(("text", "audio", "vision"), 12)
    )
    encoder = build_text_encoder(KINDS[kind], frozen=False, lora=config.text.lora)
    system = TrainingSystem(config, info, encoder, torch.device("cpu"))
    return system, parameter_groups(system, config)


@pytest.mark.parametrize("kind", KINDS)
def test_rates_decay_from_the_last_layer_to_the_embeddings(kind):
    decay = ("text.learning_rate=1e-5", "text.layer_decay=0.5", "train.learning_rate=1e-3")
    system, groups = system_of(kind, *decay)
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-5, 0.5e-5, 0.25e-5])
    trained = [p for p in system.parameters() if p.requires_grad]
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len(trained)
    assert {id(p) for p in grouped} == {id(p) for p in trained}
    depth = depths(system.network.text_encoder.network)
    of = {id(p): depth[name] for name, p in system.network.text_encoder.network.named_parameters()}
    for group, level in zip(groups[1:], (2, 1, 0), strict=True):
        assert {of[id(p)] for p in group["params"]} == {level}
    _, adapters = system_of(kind, *decay, "text.lora_rank=2")
    assert [group["lr"] for group in adapters] == pytest.approx([1e-3, 1e-5, 0.5e-5]), "embeddings are not trained"
    _, plain = system_of(kind, "text.learning_rate=1e-5")
    assert [group["lr"] for group in plain] == [1e-4, 1e-5]


def test_a_warm_up_raises_the_rates_of_all_layers():
    config = load_config(None, ["text.warmup_epochs=1"])
    adam = torch.optim.Adam([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 4e-5, 2e-5)])
    schedule = Schedule(adam, config.train, text_warmup=config.text.warmup_epochs)
    assert [group["lr"] for group in adam.param_groups] == pytest.approx([1e-3, 2e-5, 1e-5])
    schedule.update(1.0, epoch=0, step=1)
    assert [group["lr"] for group in adam.param_groups] == pytest.approx([1e-3, 4e-5, 2e-5])


def test_impossible_decays_are_rejected():
    for value in ("0", "1.1", "-0.5"):
        with pytest.raises(ValueError, match=r"text\.layer_decay is .*; it must be above 0 and at most 1"):
            load_config(None, [f"text.layer_decay={value}"])
    shared = {**KINDS["bert"], "model_type": "albert", "num_hidden_layers": 3, "num_hidden_groups": 1}
    with pytest.raises(ValueError, match=r"type 'albert' has no list of 3 layers.*set text\.layer_decay=1"):
        depths(build_text_encoder(shared, frozen=False).network)
