"""How a model runs on a device: by which backend, and in which precision.

Training, evaluation, prediction, export and the benchmarks all ask `choose_execution`. Triton kernels need a CUDA
device of compute capability 8.0; so does bfloat16. What they cannot run, PyTorch does, on any device.
"""

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from dmd.kernels.common.cards import Card, KernelError, card_of
from dmd.kernels.cpu import CPU
from dmd.kernels.interface import Backend
from dmd.kernels.portable import PORTABLE

KernelChoice = Literal["auto", "fused", "plain"]
PrecisionChoice = Literal["auto", "fp32", "tf32", "bf16"]
Precision = Literal["fp32", "tf32", "bf16"]
LEAST_CAPABILITY = (8, 0)
"""Compute capability (Ampere) from which on Triton kernels are used and bfloat16 and TF32 are native."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a model runs on one device."""

    backend: Backend
    """What computes encoders, dropout and losses (`dmd.kernels.interface`)."""
    reason: str
    """Why, for messages and run.json."""
    precision: Precision
    """Of the network's products; weights and losses are float32. fp32: IEEE float32. tf32: float32 with products of
    TF32 (10 bits of mantissa). bf16: autocast to bfloat16 (7 bits)."""

    @property
    def fused(self) -> bool:
        """Whether Triton kernels are launched."""
        return self.backend.name == "fused"

    @property
    def kernels(self) -> str:
        """The backend and its reason in one line."""
        return f"{self.backend.name} ({self.reason})"

    @property
    def autocast(self) -> torch.dtype | None:
        """The type that autocast turns operands of products into; None: no autocast."""
        return torch.bfloat16 if self.precision == "bf16" else None

    @property
    def tf32(self) -> bool:
        """Whether float32 products are to run in TF32 (`set_float32_products`)."""
        return self.precision == "tf32"

    def plain(self, device: torch.device, reason: str) -> "Execution":
        """The same on a device without Triton kernels."""
        return Execution(backend=_plain(device), reason=reason, precision=self.precision)

    def casting(self, device_type: str) -> contextlib.AbstractContextManager[object]:
        """Autocast of a forward pass, where the precision asks for it."""
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(device_type, self.autocast)


def choose_execution(
    device: torch.device,
    *,
    kernels: KernelChoice = "auto",
    precision: PrecisionChoice = "auto",
    binding: bool = True,
    card: Card | None = None,
) -> Execution:
    """How a model is to run on a device.

    Args:
        kernels: `auto`: Triton on CUDA where it can run.
        precision: `auto`: bf16 on CUDA where the card has it, else fp32.
        binding: whether `kernels` and `precision` are required, so that what the device cannot meet is an error;
            otherwise it gives way to `auto`, as for a trained model that moves to another machine.
        card: the card of a CUDA device; None: the driver is asked.

    Raises:
        ValueError: a required setting that the device cannot meet.
    """
    card = card or card_of(device)
    obstacle = _obstacle_to_triton(device, card)
    lacking = _lacking_precisions(device, card)
    if binding and kernels == "fused" and obstacle:
        raise ValueError(f"train.kernels is 'fused', but {obstacle}; set train.kernels=auto")
    if precision in ("tf32", "bf16") and lacking.get(precision):
        if binding:
            raise ValueError(f"train.precision is {precision!r}, but {lacking[precision]}; set train.precision=fp32")
        precision = "auto"
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and not lacking.get("bf16") else "fp32"
    if kernels == "plain":
        return Execution(backend=_plain(device), reason="asked for", precision=precision)
    if kernels == "fused" and not obstacle:
        return Execution(backend=_triton(), reason="asked for", precision=precision)
    if obstacle or device.type != "cuda":
        reason = obstacle or "the interpreter is for tests"
        return Execution(backend=_plain(device), reason=reason, precision=precision)
    return Execution(backend=_triton(), reason="Triton on CUDA", precision=precision)


def _plain(device: torch.device) -> Backend:
    """PyTorch on a device."""
    return CPU if device.type == "cpu" else PORTABLE


def _triton() -> Backend:
    """Triton kernels. The import defines them, so it waits until they are chosen; no other place makes it."""
    from dmd.kernels.triton_backend import TRITON

    return TRITON


def default_device() -> torch.device:
    """The CUDA device of this process (LOCAL_RANK says which), else the CPU; DS_ACCELERATOR=cpu asks for the CPU."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def why_not_fused(attempt: Callable[[], object], *, asked_for: bool) -> str:
    """Run a pass that launches Triton kernels: why they cannot run here, empty where they can.

    Args:
        asked_for: `train.kernels` is fused, so that a kernel that fails is the user's to decide about.

    Raises:
        ValueError: a kernel fails that was asked for; the message names kernel, card and bound.
    """
    try:
        attempt()
    except KernelError as error:
        if asked_for:
            raise ValueError(f"train.kernels is 'fused', but {error}; set train.kernels=auto") from error
        return str(error)
    return ""


def _obstacle_to_triton(device: torch.device, card: Card | None) -> str:
    """Why no Triton kernel can run on a device; empty where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if card is not None:
        return _too_old(card)
    if os.environ.get("TRITON_INTERPRET") != "1":
        return f"there is no Triton for {device.type} devices"
    return ""


def _lacking_precisions(device: torch.device, card: Card | None) -> dict[str, str]:
    """{precision: why a device lacks it}."""
    if card is None:
        return {"tf32": f"{device.type} devices have no TF32"}
    old = _too_old(card)
    return {"tf32": old, "bf16": old} if old else {}


def _too_old(card: Card) -> str:
    if card.capability >= LEAST_CAPABILITY:
        return ""
    return f"{card} is older than compute capability {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}"


def set_float32_products(*, tf32: bool) -> None:
    """Whether float32 products of this process run in TF32 on CUDA: torch's and our Triton kernels'.

    torch lets convolutions run in TF32 by default (`torch.backends.cudnn.allow_tf32`), which costs three digits.
    """
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


@contextlib.contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """`set_float32_products` inside a with block; what was set before holds again after it."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    set_float32_products(tf32=tf32)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
