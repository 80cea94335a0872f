"""The process groups of ranks that share a ghost batch (`dmd.losses.sharing`)."""

from datetime import timedelta

import torch.distributed as dist

from dmd.data.plan import EpochPlan
from dmd.losses.sharing import WHOLE, Sharing


def join_sharing(plan: EpochPlan, rank: int, timeout: timedelta) -> Sharing | None:
    """Join the ranks that share this rank's ghost batches; None where it has them alone. A collective of all ranks.

    Args:
        timeout: of this and of the collectives of those that share.
    """
    if not plan.sharers:
        return None
    # All ranks make all groups, in the same order.
    groups = [dist.new_group(list(ranks), timeout=timeout) for ranks in plan.sharers]
    part = plan.part(rank)
    ghost, _ = plan.shared(rank)
    return None if part == WHOLE else Sharing(part, groups[ghost])
