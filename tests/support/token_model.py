"""An untrained model that reads token ids."""

import torch
from transformers import BertConfig

from dmd.config.loading import config_to_dict, load_config
from dmd.model.config import MODALITIES
from dmd.model.text import build_text_encoder
from dmd.system.modules import Modules
from dmd.system.trained_model import ModelCard, TrainedModel
from tests.support.trained import SMALL


def token_model() -> TrainedModel:
    """A model with nine steps of each modality and a text encoder that knows 30 tokens."""
    settings = BertConfig(
        vocab_size=30, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    ).to_dict()
    config = load_config(None, ["model.task=regression", *SMALL])
    lengths = dict.fromkeys(MODALITIES, 9)
    data = {
        "name": "x",
        "generation": "x",
        "text_kind": "tokens",
        "dims": {"text": 0, "audio": 3, "vision": 4},
        "lengths": lengths,
    }
    card = ModelCard(config=config_to_dict(config), data=data, text_encoder=settings, source={})
    encoder, cpu = build_text_encoder(settings, frozen=False), torch.device("cpu")
    modules = Modules(config, data=data, text_encoder=encoder, device=cpu, binding=False)
    return TrainedModel(card, modules.state_dict(), cpu)
