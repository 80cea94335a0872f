"""Whether a model is what it declares, asked before memory is taken for it.

A card or a checkpoint's state is a small file that may declare a network of any size; its weights are as large as they
are. So the network is built on the `meta` device first, where tensors have shapes alone, and compared with the weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmd.errors import first_line


def check_declared(
    build: Callable[[], nn.Module],
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    text_encoder: Mapping[str, Any] | None,
) -> None:
    """Reject a network whose tensors are not the given ones.

    Args:
        build: makes the network; called on the `meta` device.
        weights: tensors under the names of a checkpoint.
        config: nested values of the config that the network is made of.
        text_encoder: configuration of its text encoder.

    Raises:
        ValueError: which tensor differs, or that the network is deeper than its weights are many.
    """
    _check_depth(config, text_encoder or {}, len(weights))
    try:
        with torch.device("meta"):
            declared = {name: list(tensor.shape) for name, tensor in build().state_dict().items()}
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:
        reason = first_line(error, 200)
        raise ValueError(f"the model declares a network that cannot be built ({reason}); export it again") from error
    given = {name: list(tensor.shape) for name, tensor in weights.items()}
    for name in dict.fromkeys([*declared, *given]):
        if declared.get(name) != given.get(name):
            raise ValueError(
                f"the weights do not belong to this model: {name[:200]} has the shape {given.get(name)}, declared is "
                f"{declared.get(name)}; export the run again"
            )


def _check_depth(config: Mapping[str, Any], text_encoder: Mapping[str, Any], tensors: int) -> None:
    """Every layer has at least one tensor; building one that has none for each might never end."""
    depth = {"model.levels": config.get("model", {}).get("levels", 0)}
    depth |= {key: value for key, value in text_encoder.items() if "layer" in key or "group" in key}
    for key, value in depth.items():
        if isinstance(value, int) and value > tensors:
            raise ValueError(f"the model declares {key}={value} and has {tensors} tensors; export the run again")
