"""LoRA (Hu et al., 2021): small trained matrices beside the frozen linear layers of a text encoder, by peft."""

import warnings
from dataclasses import dataclass

from torch import nn

DEFAULT = "default"
"""Targets: those that peft knows for the type of the network."""
ALL_LINEAR = "all-linear"
"""Targets: every linear layer."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What LoRA adds to a network."""

    rank: int
    targets: tuple[str, ...] | str
    """Names of layers, or the ends of their names; or `DEFAULT` or `ALL_LINEAR`."""
    alpha: int
    dropout: float


def add_lora(network: nn.Module, settings: LoraSettings) -> None:
    """Add trainable adapters to the linear layers of a transformers network, in place; all else is frozen.

    The first matrix of each is drawn from torch's generator, the second is zero: the states stay what they were.

    Raises:
        ValueError: peft is not installed, or targets that the network does not have.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("text.lora_rank needs peft, which is not installed: pip install peft") from error
    targets = _targets(network, settings.targets)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets, bias="none"
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")  # GPT-2; peft sets it itself
        inject_adapter_in_model(config, network)


def linear_layers(network: nn.Module) -> list[str]:
    """Names of the layers that LoRA may stand beside."""
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in network.named_modules() if isinstance(module, (nn.Linear, Conv1D))]


def _targets(network: nn.Module, wanted: tuple[str, ...] | str) -> list[str]:
    """The names or ends of names by which peft finds the layers."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    layers = linear_layers(network)
    if wanted == ALL_LINEAR:
        return layers
    ends = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    if wanted == DEFAULT:
        kind = str(network.config.model_type)  # type: ignore[union-attr]
        if kind not in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
            raise ValueError(
                f"peft knows no LoRA targets for a text encoder of type {kind!r}; give them: "
                f"text.lora_targets={ALL_LINEAR}, or some of [{ends}]"
            )
        wanted = tuple(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind])
    names = (wanted,) if isinstance(wanted, str) else wanted
    for name in names:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            raise ValueError(
                f"text.lora_targets holds {name!r}, which matches no linear layer of the text encoder; it has: {ends}"
            )
    return list(names)


def merge_lora(network: nn.Module) -> None:
    """Add the adapters to the weights that they stand beside, and take them out of the network, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, layer.get_base_layer())
