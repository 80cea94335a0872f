"""Which form of the kernels runs: `fused` (Triton) or `plain` (torch). Chosen once, when a system is built."""

import importlib.util
import os
from typing import Literal

import torch

KernelChoice = Literal["auto", "fused", "plain"]


def choose_kernels(wanted: KernelChoice, device: torch.device) -> tuple[bool, str]:
    """Whether to run fused kernels on a device, and why.

    Raises:
        ValueError: fused kernels are asked for where they cannot run.
    """
    if wanted == "plain":
        return False, "asked for"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if importlib.util.find_spec("triton") is None:
        obstacle = "Triton is not installed"
    elif device.type != "cuda" and not interpreted:
        obstacle = f"there is no Triton for {device.type} devices"
    else:
        obstacle = ""
    if wanted == "fused":
        if obstacle:
            raise ValueError(f"train.kernels is 'fused', but {obstacle}; set train.kernels=auto")
        return True, "asked for"
    if obstacle or device.type != "cuda":
        return False, obstacle or "the interpreter is for tests"
    return True, "Triton on CUDA"
