"""The DeepSpeed JSON, derived from the config and the plan: the one place where its batch sizes come from."""

from typing import Any

import torch

from dmd.config import Config
from dmd.data.plan import EpochPlan

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Of `train.reduce_precision`."""


def bucket_bytes(config: Config) -> int:
    """Bytes of gradient that travel between the ranks at once."""
    return round(config.train.reduce_bucket_mb * 1e6)


def deepspeed_config(config: Config, plan: EpochPlan, *, kept_elements: int = 0) -> dict[str, Any]:
    """Settings for `deepspeed.initialize`.

    Args:
        kept_elements: size up to which a weight stays on every rank at stage 3.

    Gradient clipping is 0 here because the optimizer's own hook clips (DeepSpeed's defaults to a norm of 1.0), and
    the forward pass sets its own autocast, so no precision section appears: weights and gradients are float32. Where
    ranks share ghost batches unevenly, the batch size is that of the largest part; DeepSpeed only checks its product.
    `zero_optimization` says how ZeRO 1 and 2 reduce; `launch.trainer.reduction` does it at stage 0. DeepSpeed allocates
    two buckets, by default of 500 million elements each. At stage 3 a layer's weights are let go of behind its forward
    pass, nothing is prefetched, and Adam updates a bucket's worth at once. By default DeepSpeed keeps up to a billion
    weights for backward and updates as many at once, which is all of most encoders; and with any prefetch it keeps
    those that a look ahead has met, which were most of BERT's.
    """
    precision = config.train.reduce_precision
    bucket_elements = bucket_bytes(config) // PRECISIONS[precision].itemsize
    micro = plan.samples_at_once
    zero: dict[str, Any] = {
        "stage": config.train.zero_stage,
        "overlap_comm": True,
        "reduce_bucket_size": bucket_elements,
    }
    if config.train.zero_stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": kept_elements,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
            "sub_group_size": bucket_elements,
        }
    if config.train.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": plan.forwards_per_step,
        "train_batch_size": micro * plan.forwards_per_step * plan.num_ranks,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "communication_data_type": precision,
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
