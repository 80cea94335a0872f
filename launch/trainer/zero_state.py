"""Adam's moments at ZeRO stages 1 and 2, where each rank holds a part of them: whole, for a checkpoint."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from launch.trainer.reduction import divided

GATHERED_ELEMENTS = 16 << 20
"""Elements that are gathered at once: 64 MiB of float32."""


def gather_moment(
    parameters: Sequence[nn.Parameter], moment: str, *, capacity: int = GATHERED_ELEMENTS
) -> list[Tensor]:
    """One moment of each parameter, in its shape, as copies on the CPU; every rank calls this.

    DeepSpeed's `safe_get_full_optimizer_state` makes a collective for each parameter. Here many parameters travel
    together: every rank writes its parts into a buffer of zeros, and the ranks' buffers are added.

    Args:
        parameters: the trained ones, linked to their parts by DeepSpeed, in the same order on every rank.
        moment: `exp_avg` or `exp_avg_sq`.
        capacity: elements of a buffer; a larger parameter has one of its own.
    """
    gathered = []
    for group in divided(parameters, capacity):
        sizes = [parameter.numel() for parameter in group]
        buffer = torch.zeros(sum(sizes), dtype=torch.float32, device=group[0].device)
        for parameter, whole in zip(group, buffer.split(sizes), strict=True):
            fragment = parameter._hp_mapping  # type: ignore[attr-defined]
            if fragment is not None:
                place = fragment.lp_fragment_address
                whole.narrow(0, place.start, place.numel).copy_(fragment.get_hp_fragment(moment))
        dist.all_reduce(buffer)
        parts = buffer.to("cpu").split(sizes)
        gathered += [part.view(parameter.shape).clone() for parameter, part in zip(group, parts, strict=True)]
    return gathered
