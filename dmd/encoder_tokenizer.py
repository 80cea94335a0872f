"""Whether a text encoder, or a trained model, belongs to what made the text of shards: looked at before a rank starts.

Token ids mean nothing without their vocabulary. With another one of the same size a training runs, and learns noise.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_shards.format.schema import DatasetInfo
from data_shards.text.tokenizer import NoTokenizer, load_tokenizer
from dmd.model.text import encoder_config

_SHOWN = 12
"""Digits of a digest that a message shows."""


def config_for_shards(encoder: str, info: DatasetInfo) -> dict[str, Any]:
    """The configuration of the encoder that reads shards of token ids.

    Args:
        encoder: a model directory or a name on the hub.

    Raises:
        ValueError: it cannot be loaded; says what made the token ids, and so which encoder they need.
    """
    try:
        return encoder_config(encoder)
    except ValueError as error:
        name = (info.tokenizer or {}).get("name", encoder)
        if name == encoder:
            raise
        fix = "of that vocabulary: text.encoder=PATH" if Path(name).is_file() else f"text.encoder={shlex.quote(name)}"
        raise ValueError(
            f"the token ids of the shards were made by {_describe(info.tokenizer)}, and {error}; give the encoder {fix}"
        ) from error


def check_encoder_tokenizer(encoder: str, info: DatasetInfo) -> None:
    """Reject an encoder whose own tokenizer gives other ids than the one that made the shards.

    Nothing is compared where the shards do not say what made their ids, as those of MMSA's `text_bert`, or where no
    tokenizer lies beside the encoder's weights.

    Args:
        encoder: a model directory or a name on the hub.
        info: of shards that hold tokens.

    Raises:
        ValueError: they do not belong together, or the encoder's tokenizer is there and cannot be loaded.
    """
    if info.text_kind != "tokens" or not info.tokenizer:
        return
    try:
        own = load_tokenizer(encoder)
    except NoTokenizer:
        return
    if own.digest != info.tokenizer["digest"]:
        raise ValueError(
            f"the token ids of the shards were made by {_describe(info.tokenizer)}, but text encoder {encoder!r} has "
            f"another tokenizer (sha256 {own.digest[:_SHOWN]}); give the encoder of the former (text.encoder=PATH), or "
            f"shard again with --tokenizer {shlex.quote(encoder)}"
        )


def check_same_text(trained_on: Mapping[str, Any], info: DatasetInfo) -> None:
    """Raise ValueError where the text of shards was made by another tokenizer, or of other word vectors, than that of
    the data a model was trained on; `trained_on` is what its checkpoint says of that."""
    there, here = trained_on.get("tokenizer"), info.tokenizer
    if there and here and there["digest"] != here["digest"]:
        raise ValueError(
            f"the model was trained on text made by {_describe(there)}, that of these shards was made by "
            f"{_describe(here)}; shard again with the former"
        )


def _describe(made_with: Mapping[str, str]) -> str:
    return f"{made_with['name']} (sha256 {made_with['digest'][:_SHOWN]})"
