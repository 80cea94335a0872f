"""Every launch of a Triton kernel: the limits of its grid, the card that it runs on, and its failures in our words."""

import inspect
import subprocess
from collections.abc import Callable
from functools import cache
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from triton import JITFunction
from triton.errors import TritonError
from triton.runtime import driver
from triton.runtime.errors import InterpreterError, OutOfResources

from dmd.kernels.common.cards import KernelError, card_of, current_device

GRID_LIMITS = (2**31 - 1, 65535, 65535)
"""Most programs along each axis of a CUDA grid."""
OPTIONS = ("num_warps", "num_stages")
"""Triton's options that launches give."""
ALIGNED = 16
"""Bytes. Triton compiles another kernel for a tensor that begins elsewhere than at a multiple of this."""
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
KEPT = 4096
"""Most launches whose compiled kernels are kept: those of a training, or of some hundred shapes of a prediction."""
_compiled: dict[tuple[Any, ...] | None, Any] = {}


def launch(kernel: Any, grid: tuple[int, ...], /, **arguments: Any) -> None:
    """Launch a Triton kernel on the device of its first parameter, which is a tensor.

    Triton finds the compiled kernel of a launch by naming and specialising each argument, in 20 us of the host. Here it
    does so once for each grid, set of numbers and kinds of tensors; later launches hand the compiled kernel its
    arguments, as Triton's own tutorials do.

    Args:
        kernel: a `triton.jit` function.
        grid: programs along x, y and z. What grows with the data belongs on x.
        arguments: tensors, numbers and constants under the names of the kernel's parameters, and Triton's options. A
            parameter's numbers are all of one type.

    Raises:
        KernelError: Triton cannot compile it, or the card cannot run it.
        torch.OutOfMemoryError: its code, or what it spills, finds no room on the card.
    """
    values = _order(kernel.fn)(arguments)
    device = values[0].device
    try:
        with current_device(device):
            key = _key(kernel, grid, values, arguments) if isinstance(kernel, JITFunction) else None
            compiled = _compiled.get(key)
            if compiled is not None:
                compiled[(*grid, 1, 1)[:3]](*values)
                return
            _check_grid(kernel, grid)
            compiled = kernel[grid](**arguments)
            if key is not None:  # it is not interpreted
                _keep(key, compiled)
    except (TritonError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        if isinstance(error, (InterpreterError, torch.OutOfMemoryError)) or any(s in str(error) for s in FAULTS):
            raise
        if SHORT_OF_MEMORY in str(error):  # torch holds the rest: as if torch itself had found none
            raise torch.OutOfMemoryError(str(error)) from error
        name = f"{kernel.__module__.removeprefix('dmd.kernels.')}.{kernel.__name__}"
        raise KernelError(name, str(card_of(device) or device), _reason(error)) from error


def capability_for(kernel: Any, device: torch.device) -> int | None:
    """The compute capability that Triton compiles a kernel for on a device, 90 for 9.0; None: it is interpreted."""
    if not isinstance(kernel, JITFunction):
        return None
    with current_device(device):
        return _capability_of(driver.active.get_current_device())


@cache
def _capability_of(number: int) -> int:
    """Of the current device, which has this number."""
    return int(driver.active.get_current_target().arch)


@cache
def _order(function: Callable[..., Any]) -> Callable[[dict[str, Any]], tuple[Any, ...]]:
    """What takes a kernel's arguments, in the order of its parameters, from those of a launch."""
    return itemgetter(*inspect.signature(function).parameters)


def _key(kernel: Any, grid: tuple[int, ...], values: tuple[Any, ...], arguments: dict[str, Any]) -> tuple[Any, ...]:
    """All that decides which compiled kernel a launch takes: of a tensor its type, and whether it is aligned."""
    kinds = [(x.dtype, x.data_ptr() % ALIGNED == 0) if isinstance(x, Tensor) else x for x in values]
    options = [arguments.get(option) for option in OPTIONS]
    return kernel.fn, driver.active.get_current_device(), grid, *kinds, *options


def _keep(key: tuple[Any, ...], compiled: Any) -> None:
    if len(_compiled) == KEPT:
        _compiled.clear()
    _compiled[key] = compiled


def _check_grid(kernel: Any, grid: tuple[int, ...]) -> None:
    assert len(grid) <= len(GRID_LIMITS)
    assert all(0 < size <= limit for size, limit in zip(grid, GRID_LIMITS, strict=False)), (kernel.__name__, grid)


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
