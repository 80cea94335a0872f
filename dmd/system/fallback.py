"""Whether the Triton kernels run on this device at all: where one cannot, PyTorch takes over for good."""

import sys
from collections.abc import Callable

import torch

from data_shards.format.schema import DatasetInfo
from dmd.data.synthetic import random_batch
from dmd.kernels.common.cards import current_device
from dmd.system.modules import Modules


def fall_back(modules: Modules, attempt: Callable[[], object], *, asked_for: bool) -> None:
    """Try Triton kernels; where one cannot run, go on with PyTorch and say so."""
    reason = modules.try_kernels(attempt, asked_for=asked_for)
    if reason:
        print(f"{reason}; going on in plain torch", file=sys.stderr, flush=True)


def settle_prediction(modules: Modules, info: DatasetInfo) -> None:
    """Fall back to PyTorch where a kernel of the forward pass cannot run."""
    batch = random_batch(info, 1, 2).to(modules.device)
    if modules.execution.fused:
        with torch.inference_mode(), current_device(modules.device):
            fall_back(modules, lambda: modules.predict(batch), asked_for=False)
