"""What the trainer uses of DeepSpeed, imported without MLflow.

DeepSpeed's autotuner, which nothing here uses, imports MLflow with DeepSpeed itself wherever it is installed. That
would double the time that a rank takes to import both DeepSpeed and torch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def _hidden(library: str) -> Iterator[None]:
    """Make a library unavailable to imports; one that is loaded stays as it is."""
    if library in sys.modules:
        yield
        return
    sys.modules[library] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[library]


with _hidden("mlflow"):
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.runtime.utils import count_used_parameters_in_backward
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters, ZeroParamStatus
    from deepspeed.utils import (
        safe_get_local_optimizer_state,
        safe_set_full_optimizer_state,
        safe_set_local_optimizer_state,
    )

__all__ = [
    "GatheredParameters",
    "ZeroParamStatus",
    "count_used_parameters_in_backward",
    "deepspeed",
    "get_accelerator",
    "safe_get_local_optimizer_state",
    "safe_set_full_optimizer_state",
    "safe_set_local_optimizer_state",
]
