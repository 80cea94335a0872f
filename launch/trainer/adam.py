"""Adam by device: torch's own, fused on CUDA, or DeepSpeed's FusedAdam where `train.adam` asks for it."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch

from dmd.config import Config
from dmd.errors import first_line
from dmd.system.system import ParameterGroup

ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"


def check_adam(config: Config, device: torch.device) -> None:
    """Reject an implementation that a device does not have.

    Raises:
        ValueError: DeepSpeed's FusedAdam for another device than CUDA.
    """
    if config.train.adam == "deepspeed" and device.type != "cuda":
        raise ValueError(
            f"train.adam is 'deepspeed', which needs a CUDA device, and this training runs on {device.type}; set "
            "train.adam=torch"
        )


def make_adam(
    groups: Sequence[ParameterGroup], config: Config, device: torch.device, *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The published optimizer of a training, Adam without weight decay.

    Args:
        fused: torch's fused implementation, which also exists for CPUs; None: on CUDA.

    Raises:
        ValueError: as `check_adam`, or DeepSpeed's FusedAdam cannot be compiled.
    """
    check_adam(config, device)
    if config.train.adam == "deepspeed":
        return build_deepspeed_adam(groups)
    return torch.optim.Adam([{**group} for group in groups], fused=device.type == "cuda" if fused is None else fused)


@contextlib.contextmanager
def without_architectures() -> Iterator[None]:
    """Hide TORCH_CUDA_ARCH_LIST, so that DeepSpeed compiles for the GPUs that are there.

    It cannot parse the list of some containers ("9.0a").
    """
    before = os.environ.pop(ARCHITECTURES, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[ARCHITECTURES] = before


def build_deepspeed_adam(groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
    """DeepSpeed's FusedAdam without weight decay; compiles it where that has not been done yet.

    Raises:
        ValueError: it cannot be compiled or loaded.
    """
    from deepspeed.ops.adam import FusedAdam
    from deepspeed.ops.op_builder.builder import CUDAMismatchException, MissingCUDAException

    try:
        with without_architectures():
            return FusedAdam([{**group} for group in groups], adam_w_mode=False)
    except (RuntimeError, OSError, ImportError, CUDAMismatchException, MissingCUDAException) as error:
        reason = first_line(error)
        raise ValueError(
            f"train.adam is 'deepspeed', but its FusedAdam cannot be compiled here ({reason}); set train.adam=torch, "
            f"or install an nvcc of torch's CUDA version ({torch.version.cuda}) and a C++ compiler"
        ) from error
