"""The card that a kernel runs on, and the error of a kernel that cannot run there."""

import contextlib
from dataclasses import dataclass

import torch

SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
"""Bytes that a block may use, by compute capability, 90 for 9.0 (CUDA C++ Programming Guide, compute capabilities)."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the choice depends on of a CUDA device."""

    name: str
    capability: tuple[int, int]
    """Compute capability, (major, minor)."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


def card_of(device: torch.device) -> Card | None:
    """The card of a device; None for one that is not CUDA."""
    if device.type != "cuda":
        return None
    return Card(name=torch.cuda.get_device_name(device), capability=torch.cuda.get_device_capability(device))


def current_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Make a CUDA device the current one inside a with block: Triton launches there, wherever the tensors are."""
    if device.type == "cuda" and device.index not in (None, torch.cuda.current_device()):
        return torch.cuda.device(device)
    return contextlib.nullcontext()


class KernelError(RuntimeError):
    """A Triton kernel cannot be compiled or launched on this device.

    Args:
        kernel: its name.
        device: where it was to run, such as "NVIDIA GeForce RTX 3090 (compute capability 8.6)".
        reason: what failed, with the bound that was passed where there is one.
    """

    def __init__(self, kernel: str, device: str, reason: str) -> None:
        super().__init__(f"Triton kernel {kernel} cannot run on {device}: {reason}")
        self.kernel, self.device, self.reason = kernel, device, reason
