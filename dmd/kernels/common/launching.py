"""Every launch of a Triton kernel: the limits of its grid, the card that it runs on, and its failures in our words."""

import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError
from triton.runtime.errors import InterpreterError, OutOfResources

from dmd.kernels.common.cards import KernelError, card_of, current_device

GRID_LIMITS = (2**31 - 1, 65535, 65535)
"""Most programs along each axis of a CUDA grid."""
FAULTS = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "device-side assert",
    "unspecified launch failure",
    "uncorrectable",
    "has changed since we compiled",
)
"""What says that an earlier kernel went wrong, or that we did: no reason to avoid a kernel."""
SHORT_OF_MEMORY = "out of memory"
"""What Triton's launcher says in a plain RuntimeError."""


def launch(kernel: Any, grid: Sequence[int], /, **arguments: Any) -> None:
    """Launch a Triton kernel on the device of its first tensor.

    Args:
        kernel: a `triton.jit` function.
        grid: programs along x, y and z. What grows with the data belongs on x.
        arguments: tensors, numbers and constants under the names of the kernel's parameters, and Triton's options.

    Raises:
        KernelError: Triton cannot compile it, or the card cannot run it.
        torch.OutOfMemoryError: its code, or what it spills, finds no room on the card.
    """
    assert len(grid) <= len(GRID_LIMITS)
    assert all(0 < size <= limit for size, limit in zip(grid, GRID_LIMITS, strict=False)), (kernel.__name__, grid)
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    try:
        with current_device(device):
            kernel[tuple(grid)](**arguments)
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        if isinstance(error, (InterpreterError, torch.OutOfMemoryError)) or any(s in str(error) for s in FAULTS):
            raise
        if SHORT_OF_MEMORY in str(error):  # torch holds the rest: as if torch itself had found none
            raise torch.OutOfMemoryError(str(error)) from error
        name = f"{kernel.__module__.removeprefix('dmd.kernels.')}.{kernel.__name__}"
        raise KernelError(name, str(card_of(device) or device), _reason(error)) from error


def _reason(error: Exception) -> str:
    """What failed, in one line, with the bound where there is one."""
    if isinstance(error, OutOfResources):
        unit = "bytes of " if "memory" in error.name else ""
        return f"it needs {error.required} {unit}{error.name}, and {error.limit} is the most"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def named_strides(name: str, x: Tensor) -> dict[str, int]:
    """A kernel's arguments: the strides of x [E, B, T, channels] in elements.

    They are `{name}_e` between encoders, `{name}_b` between samples and `{name}_t` between steps; channels are dense.
    """
    encoder, sample, step, channel = x.stride()
    assert channel == 1
    return {f"{name}_e": encoder, f"{name}_b": sample, f"{name}_t": step}


def dense_channels(x: Tensor) -> Tensor:
    """x with neighbouring channels (the last axis) side by side in memory, copied only where they are not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def product_precision() -> str:
    """Triton's `input_precision` of float32 products: TF32 where torch's own are."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"
