"""The text encoder: any Hugging Face encoder by local path or hub name, for shards that hold token ids."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """Token ids -> last hidden states.

    Args:
        network: a transformers encoder (see `load_text_encoder`).
        frozen: keep its weights and run it without dropout.
    """

    def __init__(self, network: nn.Module, *, frozen: bool) -> None:
        super().__init__()
        self.network = network
        self.frozen = frozen
        self.dim = int(network.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self._takes_types = "token_type_ids" in inspect.signature(network.forward).parameters
        self._takes_whole_masks = getattr(network.config, "_attn_implementation", None) == "sdpa"
        if frozen:
            network.requires_grad_(False)

    def train(self, mode: bool = True) -> "TextEncoder":
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.network.train(mode and not self.frozen)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, 3, T] (ids, attention mask, token types; MMSA's `text_bert`) -> [B, T, dim]."""
        ids, mask, types = tokens.unbind(1)
        if self._takes_whole_masks:
            mask = whole_mask(mask)
        arguments = {"input_ids": ids, "attention_mask": mask}
        if self._takes_types:
            arguments["token_type_ids"] = types
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.network(**arguments).last_hidden_state


def whole_mask(mask: Tensor) -> Tensor:
    """Which keys each query sees, [B, 1, T, T], of a mask [B, T]: what transformers makes of it for SDPA, but without
    asking the host whether all of it is 1."""
    return mask[:, None, None].bool().expand(-1, 1, mask.shape[1], -1)


def encoder_config(name: str) -> dict[str, Any]:
    """The configuration of an encoder as a dict that `build_text_encoder` takes.

    Raises:
        ValueError: `name` is neither a local model directory nor reachable on a model hub.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name).to_dict()
    except (OSError, ValueError) as error:
        raise _not_loadable(name, error) from error


def build_text_encoder(config: dict[str, Any], *, frozen: bool) -> TextEncoder:
    """An encoder of this configuration with fresh weights (a checkpoint brings the trained ones)."""
    from transformers import AutoConfig, AutoModel

    settings = AutoConfig.for_model(**config)
    return TextEncoder(_without_pooler(AutoModel.from_config(settings)), frozen=frozen)


def load_text_encoder(name: str, *, frozen: bool) -> TextEncoder:
    """A pretrained encoder by local path or hub name, in float32.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoModel

    try:
        network = AutoModel.from_pretrained(name, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _not_loadable(name, error) from error
    return TextEncoder(_without_pooler(network), frozen=frozen)


def check_tokens(config: dict[str, Any], *, vocab_size: int, length: int) -> None:
    """Raise ValueError if token ids or lengths of the data do not fit the encoder."""
    if vocab_size > config["vocab_size"]:
        raise ValueError(
            f"the shards hold token id {vocab_size - 1}, but the text encoder knows {config['vocab_size']} tokens; "
            "choose the encoder whose tokenizer made the shards (text.encoder=PATH)"
        )
    limit = config.get("max_position_embeddings")
    if limit is not None and length > limit:
        raise ValueError(f"the shards hold {length} tokens per sample, but the text encoder takes at most {limit}")


def _without_pooler(network: nn.Module) -> nn.Module:
    """Drop the pooler, which DMD never reads: a parameter without gradient is not a parameter here."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # type: ignore[assignment]
    return network


def _not_loadable(name: str, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0]
    return ValueError(
        f"text encoder {name!r} cannot be loaded ({reason}); give a local model directory or a hub name that this "
        "machine reaches: text.encoder=PATH"
    )
