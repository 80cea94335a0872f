"""Bitwise reproducible training on CUDA (`train.deterministic`): the switches of torch and cuBLAS, process-wide."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

import torch

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable that cuBLAS reads when its first handle is made."""
WORKSPACES = (":4096:8", ":16:8")
"""The values that torch accepts as deterministic."""


def make_deterministic(environment: MutableMapping[str, str]) -> None:
    """Switch this process to deterministic algorithms, for good; to be called before anything runs on CUDA.

    An operation that has no deterministic implementation on CUDA is an error of torch's from then on. The composed
    attention and the Triton kernels use no atomic additions, so they need no switch.

    Args:
        environment: of this process; gets cuBLAS's workspace, unless the user has chosen a deterministic one.
    """
    if environment.get(WORKSPACE) not in WORKSPACES:
        environment[WORKSPACE] = WORKSPACES[0]
    torch.use_deterministic_algorithms(True)
    # Filling costs time, and nothing reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_math_sdp(True)


@contextmanager
def restored_determinism() -> Iterator[None]:
    """Restore after the block the switches that `make_deterministic` sets; the environment is the caller's."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    of_cudnn = cudnn.deterministic, cudnn.benchmark
    attention = {
        cuda.enable_flash_sdp: cuda.flash_sdp_enabled(),
        cuda.enable_mem_efficient_sdp: cuda.mem_efficient_sdp_enabled(),
        cuda.enable_cudnn_sdp: cuda.cudnn_sdp_enabled(),
        cuda.enable_math_sdp: cuda.math_sdp_enabled(),
    }
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]
        cudnn.deterministic, cudnn.benchmark = of_cudnn
        for enable, enabled in attention.items():
            enable(enabled)
