"""Ghost batches that several ranks share: which samples a rank runs, and how the ranks come to the same losses.

Each of the k ranks that share a ghost batch g runs the network on its part of the samples. Losses compare samples, so
each of them computes all losses of g, of features that are gathered (`Sharing.gather`) and of sums over samples that
are added up (`Sharing.add`). With w_g for the share of g in a step's mean, the step's loss is

    L = sum over g of w_g L_g = sum over g, over the ranks r of g, of (w_g / k) L_g,r

where L_g,r is what rank r computes, the same number for each r. The gradient of what rank r puts in is the sum of k
equal parts, one of each rank's loss, so r takes k times its own: backward needs no collective. A weight of the
objective itself (of the GD-Units) gets (1/k) w_g dL_g from each rank, and the engine adds the ranks' gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def even_part(total: int, parts: int, number: int) -> range:
    """The `number`-th of `parts` runs of range(total), whose lengths differ by one at most."""
    return range(total * number // parts, total * (number + 1) // parts)


@dataclass(frozen=True)
class Part:
    """What a rank runs of a ghost batch: part `number` of `of`."""

    number: int = 0
    of: int = 1

    def places(self, size: int) -> range:
        """Which of the `size` samples of a ghost batch; one at least, as long as there are not more parts."""
        return even_part(size, self.of, self.number)

    def slots(self, size: int) -> int:
        """Samples of a pass, padding included: the same for every part."""
        return -(-size // self.of)


WHOLE = Part()


class Sharing:
    """The ranks that share ghost batches.

    Args:
        part: what this rank runs.
        group: the ranks, in the order of their parts; None: a rehearsal, in which each part is this rank's own, so
            that a pass of the real shapes can be tried without the others.
    """

    def __init__(self, part: Part, group: dist.ProcessGroup | None) -> None:
        self.part = part
        self.group = group

    def own(self, values: Tensor) -> Tensor:
        """Of values of whole ghost batches [G, S] those of this rank's samples [G, P], 0 where a slot has none."""
        size = values.shape[1]
        places = self.part.places(size)
        return F.pad(values[:, places.start : places.stop], (0, self.part.slots(size) - len(places)))

    def gather(self, tensors: Sequence[Tensor], size: int) -> list[Tensor]:
        """Features of all samples of the ghost batches: each [G, P, ...] -> [G, S, ...]. One collective.

        Args:
            tensors: of one dtype.
            size: S.
        """
        flat = torch.cat([tensor.flatten(2) if tensor.dim() > 2 else tensor.unsqueeze(-1) for tensor in tensors], -1)
        every: Tensor = _Gather.apply(flat, self)  # type: ignore[no-untyped-call]  # [k, G, P, N]
        of = self.part.of
        parts = [every[number, :, : len(Part(number, of).places(size))] for number in range(of)]
        columns = torch.cat(parts, 1).split([tensor[0, 0].numel() for tensor in tensors], -1)
        return [
            column.reshape(column.shape[:2] + tensor.shape[2:]) for column, tensor in zip(columns, tensors, strict=True)
        ]

    def add(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sum over the ranks of each tensor. One collective."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        whole: Tensor = _Add.apply(flat, self)  # type: ignore[no-untyped-call]
        parts = whole.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


class _Gather(torch.autograd.Function):
    """[...] of each rank -> [k, ...] of all; the gradient is k times this rank's own (see the module)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sharing: Sharing) -> Tensor:
        ctx.part = sharing.part
        if sharing.group is None:
            return own.expand(sharing.part.of, *own.shape).clone()
        every = own.new_empty(sharing.part.of, *own.shape)
        dist.all_gather(list(every.unbind(0)), own.contiguous(), group=sharing.group)
        return every

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.part.number] * ctx.part.of, None


class _Add(torch.autograd.Function):
    """The sum over the ranks; the gradient is k times that of this rank's loss (see the module)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sharing: Sharing) -> Tensor:
        ctx.of = sharing.part.of
        if sharing.group is None:
            return own * ctx.of
        whole = own.clone()
        dist.all_reduce(whole, group=sharing.group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.of, None
