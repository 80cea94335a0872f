"""What DeepSpeed and Adam get at ZeRO stage 0: groups of joined weights, with their learning rates."""

from types import SimpleNamespace

import pytest
import torch

from dmd.config.loading import load_config
from dmd.model.text import build_text_encoder
from dmd.system.system import TrainingSystem, parameter_groups
from launch.trainer.joined_system import JoinedSystem, join_groups

BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "vocab_size": 100,
}
CAPACITY = 700
"""Fewer elements than the word embeddings have."""
INFO = SimpleNamespace(
    dims={"text": 0, "audio": 5, "vision": 6},
    lengths=dict.fromkeys(("text", "audio", "vision"), 8),
    vocab_size=100,
    text_kind="tokens",
)


@pytest.mark.parametrize("frozen", [False, True])
def test_groups_keep_their_rates_and_every_trained_weight(frozen):
    config = load_config(
        "mosi-aligned",
        ["model.task=regression", "model.dim=4", "model.heads=1", "model.levels=1", "text.learning_rate=2e-5"],
    )
    system = TrainingSystem(config, INFO, build_text_encoder(BERT, frozen=frozen), torch.device("cpu"))
    apart = parameter_groups(system, config)
    before = {name: tensor.clone() for name, tensor in system.state_dict().items()}
    groups = join_groups(system, apart, CAPACITY)
    assert [group["lr"] for group in groups] == [config.train.learning_rate, 2e-5][: 1 if frozen else 2]
    wholes = [whole for group in groups for whole in group["params"]]
    assert [id(whole) for whole in wholes] == [id(weights.whole) for weights in system.weights]
    for group, joined in zip(apart, groups, strict=True):
        inside = [weights for weights in system.weights if any(weights.whole is whole for whole in joined["params"])]
        last_first = [id(p) for weights in inside for p in weights.parameters.values()]
        assert last_first == [id(p) for p in group["params"]][::-1]
        for weights in inside:
            assert weights.alone or sum(p.numel() for p in weights.parameters.values()) <= CAPACITY
    assert any(weights.alone for weights in system.weights)
    assert len(wholes) < len([p for p in system.parameters() if p.requires_grad]) / 2
    assert all(system.state_dict()[name].equal(tensor) for name, tensor in before.items())
    seen = {id(p) for p in JoinedSystem(system).parameters()}
    untrained = {id(p) for p in system.parameters() if not p.requires_grad}
    assert seen == {id(whole) for whole in wholes} | untrained, "what DeepSpeed sends to all ranks"
    assert bool(untrained) == frozen
