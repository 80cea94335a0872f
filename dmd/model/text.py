"""The text encoder: any Hugging Face encoder by local path or hub name, for shards that hold token ids.

Only classes of transformers itself are built. Code, kernels and other models that a configuration names are never
loaded, whether it comes from a model directory, an export or a checkpoint: see `plain_config`.
"""

import inspect
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dmd.errors import first_line
from dmd.model.lora import LoraSettings, add_lora
from dmd.model.quantize import Quantize, quantize_linear
from dmd.model.text_base import TextBase, base_name, leave_out_base, weights_digest

_HUB_SECONDS = 3.0
"""For the hub to answer."""
NAMING = frozenset(
    {
        "auto_map",
        "name_or_path",
        "_name_or_path",
        "_commit_hash",
        "custom_pipelines",
        "trust_remote_code",
        "transformers_weights",
        "base_model_name_or_path",
        "quantization_config",
        "kernel_config",
        "use_kernels",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "backbone",
        "backbone_config",
        "backbone_kwargs",
        "use_timm_backbone",
        "use_pretrained_backbone",
        "num_labels",
    }
)
"""Keys of a configuration by which transformers finds code, native kernels, files or models to fetch; and the number of
labels, of which it would write a list."""
ATTENTION = ("eager", "sdpa")
"""Implementations of attention that torch brings along; any other may be a kernel to fetch."""
POSITIONS_BEHIND_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "ibert",
        "longformer",
        "luke",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Types whose first token stands at position `pad_token_id + 1`, and padding at `pad_token_id`."""
FULL = "full_attention"
"""How transformers calls a layer whose queries see all keys that the mask leaves."""


class TextEncoder(nn.Module):
    """Token ids -> last hidden states.

    A decoder (GPT-2, Qwen2) stays causal: a step sees itself and the steps before it. What it gives for padded steps is
    set to zero, as it knows no padding; the states of an encoder stay there, as in the published code.

    Args:
        network: a transformers model (see `load_text_encoder`).
        frozen: keep its weights and run it without dropout.
        lora: adapters to add, which alone are trained then and are in its state.
        base: name and digest of the network's weights, where its state does not hold them.
        quantize: how its linear layers are stored, of which none is trained then.

    Raises:
        ValueError: adapters that do not fit the network, or no bitsandbytes.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        frozen: bool,
        lora: LoraSettings | None = None,
        base: TextBase | None = None,
        quantize: Quantize = "none",
    ) -> None:
        super().__init__()
        self.network = network
        self.frozen = frozen
        self.base = base
        config: Any = network.config
        self.dim = int(config.hidden_size)
        declared = [module.is_causal for module in network.modules() if hasattr(module, "is_causal")]
        self.causal = any(declared) and getattr(config, "is_causal", True)
        parameters = inspect.signature(network.forward).parameters
        # GPT-2 embeds token types as tokens; what is no encoder has no use for them.
        self._takes_types = "token_type_ids" in parameters and not self.causal
        self._takes_cache = "use_cache" in parameters
        self._takes_whole_masks = (
            bool(declared)
            and getattr(config, "_attn_implementation", None) == "sdpa"
            and set(getattr(config, "layer_types", None) or [FULL]) == {FULL}
        )
        self._first_position = first_position(config)
        self._takes_positions = "position_ids" in parameters and (self.causal or self._first_position > 0)
        if frozen:
            network.requires_grad_(False)
        if quantize != "none":
            quantize_linear(network, quantize)
        if lora is not None:
            add_lora(network, lora)
        if stands_on_base(lora, quantize):
            leave_out_base(self)

    def checkpoint_gradients(self) -> None:
        """Run each layer again in backward instead of keeping what it computed; it draws the same dropout.

        Raises:
            ValueError: a network that cannot do that.
        """
        network: Any = self.network
        if not network.supports_gradient_checkpointing:
            raise ValueError(
                f"text.gradient_checkpointing is true, but a text encoder of type {network.config.model_type!r} has no "
                "gradient checkpointing; set it to false"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its name changes in transformers 6
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def train(self, mode: bool = True) -> "TextEncoder":
        """A frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.network.train(mode and not self.frozen)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, 3, T] (ids, attention mask, token types; MMSA's `text_bert`) -> [B, T, dim]."""
        ids, mask, types = tokens.unbind(1)
        unpadded = (mask != 0).long()  # [B, T]
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": unpadded}
        if self._takes_whole_masks:
            arguments["attention_mask"] = whole_mask(unpadded, causal=self.causal)
        if self._takes_types:
            arguments["token_type_ids"] = types
        if self._takes_positions:
            arguments["position_ids"] = positions(unpadded, self._first_position)
        if self._takes_cache:
            arguments["use_cache"] = False
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states = self.network(**arguments).last_hidden_state
        return states * unpadded[:, :, None].to(states.dtype) if self.causal else states


def stands_on_base(lora: LoraSettings | None, quantize: Quantize) -> bool:
    """Whether a checkpoint names the weights of such an encoder instead of holding them."""
    return lora is not None or quantize != "none"


def whole_mask(mask: Tensor, *, causal: bool) -> Tensor:
    """Which keys each query sees, [B, 1, T, T], of a mask [B, T]: what transformers makes of it for SDPA, but without
    asking the host whether all of it is 1."""
    steps = mask.shape[1]
    seen = mask[:, None, None].bool().expand(-1, 1, steps, -1)
    return seen & seen.new_ones(steps, steps).tril() if causal else seen


def first_position(config: Any) -> int:
    """Position of the first token, of a transformers configuration."""
    padding = getattr(config, "pad_token_id", None)
    return padding + 1 if config.model_type in POSITIONS_BEHIND_PADDING and padding is not None else 0


def positions(mask: Tensor, first: int) -> Tensor:
    """Positions [B, T] of the steps that a mask [B, T] of 0 and 1 leaves, counted from `first` wherever the padding is;
    padded steps stand before it."""
    return (mask.cumsum(1) * mask + first - 1).clamp(min=0)


def encoder_config(name: str, *, local: bool = False) -> dict[str, Any]:
    """The configuration of an encoder as a dict that `build_text_encoder` takes.

    Args:
        local: fetch nothing.

    Raises:
        ValueError: `name` is neither a local model directory nor reachable on a model hub, or needs code of its own.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    try:
        folder = _config_directory(name, local=local)
        found, _ = PreTrainedConfig.get_config_dict(folder)
        custom_code = "auto_map" in found and found.get("model_type") not in CONFIG_MAPPING
        content = {} if custom_code else AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except _faults() as error:
        raise _not_loadable(name, error) from error
    if custom_code:
        raise ValueError(
            f"text encoder {name!r} needs Python code of its own (auto_map in its config.json), which is never run; "
            "choose one that transformers knows: text.encoder=PATH"
        )
    return plain_config(content)


def _config_directory(name: str, *, local: bool) -> str:
    """The directory with an encoder's configuration, fetched where a hub's name is none. A machine without a network
    hears so at once: transformers would ask six times, for half a minute."""
    if Path(name).exists():
        return name
    from huggingface_hub import snapshot_download

    return snapshot_download(name, allow_patterns=["config.json"], local_files_only=local, etag_timeout=_HUB_SECONDS)


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the keys that name code, kernels or other models, at any depth."""
    plain = {}
    for key, value in config.items():
        if key not in NAMING:
            plain[key] = plain_config(value) if isinstance(value, dict) else value
        elif key.endswith("attn_implementation") and value in ATTENTION:
            plain["attn_implementation"] = value
    return plain


def build_text_encoder(
    config: dict[str, Any], *, frozen: bool, lora: LoraSettings | None = None, quantize: Quantize = "none"
) -> TextEncoder:
    """An encoder of this configuration with fresh weights (a checkpoint brings the trained ones).

    Raises:
        ValueError: none that transformers can build without custom code, or adapters that do not fit it.
    """
    from transformers import AutoModel

    try:
        network = AutoModel.from_config(_settings(config), dtype=torch.float32, trust_remote_code=False)
    except _faults() as error:
        raise ValueError(
            f"no text encoder of type {config.get('model_type')!r} can be built ({first_line(error, 300)}); train or "
            "export with one that transformers knows"
        ) from error
    return _encoder(config.get("model_type"), network, frozen=frozen, lora=lora, quantize=quantize)


def load_text_encoder(
    name: str,
    *,
    frozen: bool,
    lora: LoraSettings | None = None,
    quantize: Quantize = "none",
    config: dict[str, Any] | None = None,
    local: bool = False,
) -> TextEncoder:
    """A pretrained encoder by local path or hub name, in float32; pickled weights only as far as torch's `weights_only`
    reads them.

    Args:
        config: its configuration; None: what is stored beside its weights.
        local: fetch nothing: a directory, or what this machine has fetched from the hub before.

    Raises:
        ValueError: it cannot be loaded, or adapters that do not fit it.
    """
    from transformers import AutoModel
    from transformers.utils.peft_utils import find_adapter_config_file

    content = encoder_config(name, local=local) if config is None else config
    try:
        if find_adapter_config_file(name, local_files_only=local) is not None:
            raise ValueError("it is a PEFT adapter, which names another model; merge the two")
        network = AutoModel.from_pretrained(
            name,
            config=_settings(content),
            dtype=torch.float32,
            trust_remote_code=False,
            weights_only=True,
            local_files_only=local,
        )
    except _faults() as error:
        raise _not_loadable(name, error) from error
    network = _without_pooler(network)
    base = None
    if stands_on_base(lora, quantize):
        base = TextBase(name=base_name(name), sha256=weights_digest(network))
    return _encoder(content.get("model_type"), network, frozen=frozen, lora=lora, base=base, quantize=quantize)


def _settings(config: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**plain_config(config))


def check_tokens(config: dict[str, Any], *, vocab_size: int, length: int) -> None:
    """Raise ValueError if token ids or lengths of the data do not fit the encoder."""
    settings = _settings(config)
    if vocab_size > settings.vocab_size:
        raise ValueError(
            f"the shards hold token id {vocab_size - 1}, but the text encoder knows {settings.vocab_size} tokens; "
            "choose the encoder whose tokenizer made the shards (text.encoder=PATH)"
        )
    limit = getattr(settings, "max_position_embeddings", None)
    if limit is not None and length > limit - first_position(settings):
        raise ValueError(
            f"the shards hold {length} tokens per sample, but the text encoder takes at most "
            f"{limit - first_position(settings)}"
        )


def _encoder(
    kind: object,
    network: nn.Module,
    *,
    frozen: bool,
    lora: LoraSettings | None,
    quantize: Quantize,
    base: TextBase | None = None,
) -> TextEncoder:
    try:
        return TextEncoder(_without_pooler(network), frozen=frozen, lora=lora, base=base, quantize=quantize)
    except AttributeError as error:
        raise ValueError(
            f"no text encoder of type {kind!r} can be built ({first_line(error, 300)}); it is no encoder of text"
        ) from error


def _without_pooler(network: nn.Module) -> nn.Module:
    """Drop the pooler, which DMD never reads: a parameter without gradient is not a parameter here."""
    if getattr(network, "pooler", None) is not None:
        network.pooler = None  # type: ignore[assignment]
    return network


def _not_loadable(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"text encoder {name!r} cannot be loaded ({first_line(error, 300)}); give a local model directory or a hub "
        "name that this machine reaches: text.encoder=PATH"
    )


def _faults() -> tuple[type[Exception], ...]:
    """What transformers raises over files and configurations that are not what they should be."""
    from huggingface_hub.errors import HfHubHTTPError, StrictDataclassError

    kinds = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ArithmeticError)
    return (*kinds, pickle.UnpicklingError, SafetensorError, StrictDataclassError, HfHubHTTPError)
