"""The base of a text encoder: pretrained weights that nobody trains and that checkpoints name instead of holding.

A checkpoint or an export of such an encoder has its adapters alone, and the base's name with a digest of its weights.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

NETWORK = "network."
"""Where the network is in its `TextEncoder`."""


@dataclass(frozen=True, kw_only=True)
class TextBase:
    """Which weights a text encoder stands on."""

    name: str
    """Absolute path of a local directory, or name on the hub."""
    sha256: str
    """Of all weights, by name (`weights_digest`)."""


def base_name(name: str) -> str:
    """A name of an encoder that means the same from any working directory."""
    path = Path(name)
    return str(path.absolute()) if path.is_dir() else name


def weights_digest(network: nn.Module) -> str:
    """sha256 over name, shape and float32 bytes of every tensor, in the order of the names: whatever file it is of."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        whole = tensor.detach().float().cpu().contiguous()
        digest.update(f"{name} {list(whole.shape)}\n".encode())
        digest.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_base(wanted: TextBase, found: TextBase, where: str) -> None:
    """Raise ValueError unless a base is the one that a model was trained on.

    Args:
        where: what was trained on it.
    """
    if wanted.sha256 != found.sha256:
        raise ValueError(
            f"{where} was trained on the weights of the text encoder {wanted.name} (sha256 {wanted.sha256[:16]}), but "
            f"those of {found.name} are others (sha256 {found.sha256[:16]}); give the encoder that it was trained on"
        )


def leave_out_base(encoder: nn.Module) -> None:
    """Let the state of an encoder hold the trained parameters of its network alone, and be loaded without the others.

    Args:
        encoder: has the network as `network`.
    """
    network = encoder.get_submodule(NETWORK.rstrip("."))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}

    def drop(_: nn.Module, state: dict[str, Tensor], prefix: str, __: object) -> None:
        place = f"{prefix}{NETWORK}"
        for name in [name for name in state if name.startswith(place) and name.removeprefix(place) not in trained]:
            del state[name]

    def accept(_: nn.Module, keys: "torch.nn.modules.module._IncompatibleKeys") -> None:
        of_base = [key for key in keys.missing_keys if NETWORK in key and key.partition(NETWORK)[2] not in trained]
        keys.missing_keys[:] = [key for key in keys.missing_keys if key not in of_base]

    encoder.register_state_dict_post_hook(drop)
    encoder.register_load_state_dict_post_hook(accept)
