"""The DeepSpeed JSON, derived from the config and the plan: the one place where its batch sizes come from."""

from typing import Any

from dmd.config import Config
from dmd.data.plan import EpochPlan


def deepspeed_config(config: Config, plan: EpochPlan) -> dict[str, Any]:
    """Settings for `deepspeed.initialize`.

    Gradient clipping is 0 here because the optimizer's own hook clips (DeepSpeed's defaults to a norm of 1.0), and
    the forward pass sets its own autocast, so no precision section appears: weights and gradients are float32. Where
    ranks share ghost batches unevenly, the batch size is that of the largest part; DeepSpeed only checks its product.
    """
    micro = plan.samples_at_once
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": plan.forwards_per_step,
        "train_batch_size": micro * plan.forwards_per_step * plan.num_ranks,
        "zero_optimization": {"stage": config.train.zero_stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
