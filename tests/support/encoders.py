"""Text encoders of random weights: a tiny one of each kind that users train with."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, DebertaV2Config, GPT2Config, Qwen2Config, RobertaConfig, XLMRobertaConfig

from dmd.model.text import build_text_encoder

SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
KINDS: dict[str, dict[str, Any]] = {
    "bert": BertConfig(**SIZES, max_position_embeddings=64).to_dict(),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=66, pad_token_id=1).to_dict(),
    "deberta-v2": DebertaV2Config(
        **SIZES,
        max_position_embeddings=64,
        relative_attention=True,
        position_buckets=8,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
    ).to_dict(),
    "xlm-roberta": XLMRobertaConfig(**SIZES, max_position_embeddings=66, pad_token_id=1).to_dict(),
    "gpt2": GPT2Config(vocab_size=100, n_embd=16, n_layer=2, n_head=2, n_positions=64).to_dict(),
    "qwen2": Qwen2Config(**SIZES, num_key_value_heads=1, max_position_embeddings=64, dtype="bfloat16").to_dict(),
}
"""Configurations by type; RoBERTa kinds with positions for 64 tokens, DeBERTa as DeBERTa-v3 is, Qwen2 as it is stored:
in bfloat16."""
DECODERS = ("gpt2", "qwen2")


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""Of an encoder: its dropout is drawn by pass, so that another number of ranks drops other elements."""


def save_encoder(kind: str, folder: Path, *, seed: int = 0, **settings: object) -> Path:
    """A model directory with random weights."""
    torch.manual_seed(seed)
    build_text_encoder({**KINDS[kind], **settings}, frozen=False).network.save_pretrained(folder)
    return folder
