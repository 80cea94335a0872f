"""What the trainer uses of DeepSpeed, imported without MLflow (`launch.hidden_library`)."""

from launch.hidden_library import hidden

with hidden("mlflow"):
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
