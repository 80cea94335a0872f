"""Linear layers of a frozen network in 8 or 4 bits, by bitsandbytes: LLM.int8 (Dettmers et al., 2022) and NF4 (QLoRA,
Dettmers et al., 2023).

Weights are quantised when they are moved to a device, also to a CPU. Nothing of them is trained; LoRA's adapters beside
them stay float32.
"""

from typing import Any, Literal

import torch
from torch import nn

from dmd.errors import first_line

Quantize = Literal["none", "8bit", "4bit"]
OUTLIER_THRESHOLD = 6.0
"""Inputs of 8-bit layers above this are multiplied in higher precision, as published."""


def quantize_linear(network: nn.Module, how: Quantize) -> None:
    """Replace the linear layers of a transformers network, in place, and freeze all of it.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(
            f"text.quantize is {how!r}, which needs bitsandbytes: pip install bitsandbytes, or set text.quantize=none"
        ) from error
    from transformers.pytorch_utils import Conv1D

    network.requires_grad_(False)
    for name, layer in list(network.named_modules()):
        if type(layer) is nn.Linear or isinstance(layer, Conv1D):
            weight = layer.weight.data
            whole = weight.T.contiguous() if isinstance(layer, Conv1D) else weight  # [out, in]
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, _quantized(bitsandbytes, whole, layer.bias, how))
    network.is_loaded_in_8bit = how == "8bit"  # type: ignore[assignment]
    network.is_loaded_in_4bit = how == "4bit"  # type: ignore[assignment]  # by both peft chooses its adapters


def check_quantized(network: nn.Module, *, otherwise: str) -> None:
    """Raise ValueError if this device cannot run quantised layers; asked once they are there.

    Args:
        otherwise: what the user is told to do then.
    """
    layer: Any
    for layer in network.modules():
        if type(layer).__module__.startswith("bitsandbytes."):
            device = layer.weight.device
            try:
                with torch.no_grad():
                    layer(torch.zeros(1, layer.in_features, device=device))
            except (RuntimeError, NotImplementedError, ValueError, AssertionError) as error:
                raise ValueError(
                    f"text.quantize: bitsandbytes cannot run a {type(layer).__name__} on {device.type} "
                    f"({first_line(error, 200)}); {otherwise}"
                ) from error
            return


def _quantized(bitsandbytes: Any, weight: torch.Tensor, bias: nn.Parameter | None, how: Quantize) -> nn.Module:
    """A layer that will be quantised when it is moved.

    Args:
        weight: [out, in].
    """
    nn_, outputs, inputs = bitsandbytes.nn, *weight.shape
    if how == "8bit":
        layer = nn_.Linear8bitLt(
            inputs, outputs, bias is not None, has_fp16_weights=False, threshold=OUTLIER_THRESHOLD, device="meta"
        )
        layer.weight = nn_.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    else:
        layer = nn_.Linear4bit(
            inputs, outputs, bias is not None, compute_dtype=torch.float32, quant_type="nf4", device="meta"
        )
        layer.weight = nn_.Params4bit(weight, requires_grad=False, quant_type="nf4")
        # On such a CPU it would repack the weights at the first evaluation, and compute in bfloat16 from then on.
        layer.support_avx512bf16_for_cpu = False
    layer.bias = bias
    return layer
