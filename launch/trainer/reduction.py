"""Averages gradients over the ranks in buckets that start while backward runs: ZeRO stage 0, where DeepSpeed starts a
single one when backward has ended. At stages 1 and 2 DeepSpeed's own buckets do this.

    reduction = GradientReduction(parameters, bucket_bytes=25_000_000, precision=torch.float32)
    loss.backward()                # passes before a step's last one
    with reduction:
        loss.backward()            # the last one: on leaving, every gradient is the average over the ranks

A bucket starts once its gradients are final and the buckets before it have started, so every rank starts them in the
same order. Its place in memory depends on the parameters alone: the same number of ranks adds in the same order, in
the first step of a session as in any other. A parameter without a gradient gets zeros.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
import torch.distributed as dist
from deepspeed.runtime.utils import count_used_parameters_in_backward
from torch import Tensor, nn

from dmd.testing.fault_points import fault_point


@dataclass
class Bucket:
    """Parameters whose gradients travel together."""

    parameters: list[nn.Parameter]
    missing: int = 0
    """Gradients that the running backward pass has yet to give."""
    joined: Tensor | None = None
    """Their gradients one after the other, while they travel."""
    work: dist.Work | None = None

    def parts(self, joined: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its part of a joined tensor, in its shape."""
        sizes = [parameter.numel() for parameter in self.parameters]
        for parameter, part in zip(self.parameters, joined.split(sizes), strict=True):
            yield parameter, part.view_as(parameter)

    def start(self, precision: torch.dtype) -> None:
        """Join the gradients, which frees them, and send them off."""
        size = sum(parameter.numel() for parameter in self.parameters)
        self.joined = torch.empty(size, dtype=precision, device=self.parameters[0].device)
        for parameter, part in self.parts(self.joined):
            if parameter.grad is None:
                part.zero_()
            else:
                part.copy_(parameter.grad)
                parameter.grad = None
        self.work = dist.all_reduce(self.joined, async_op=True)
        fault_point("bucket")

    def finish(self, num_ranks: int) -> None:
        """Wait for the sum; the gradients are then parts of one float32 tensor."""
        assert self.work is not None
        assert self.joined is not None
        self.work.wait()
        average = self.joined.float().mul_(1 / num_ranks)
        for parameter, part in self.parts(average):
            parameter.grad = part
        self.joined = self.work = None


class GradientReduction:
    """Reduces the gradients of a step during its last backward pass. One rank reduces nothing.

    Args:
        parameters: those that are trained, in the order of the forward pass; all on one device.
        bucket_bytes: bytes that travel together, at most; a larger parameter travels alone.
        precision: in which gradients travel and are added; their average is float32 again.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, bucket_bytes: int, precision: torch.dtype) -> None:
        self._parameters = list(parameters)
        self._precision = precision
        self._num_ranks = dist.get_world_size()
        self._running = False
        self._counted = False
        self._next = 0
        self.buckets: list[Bucket] = []
        """In the order in which they start."""
        if self._num_ranks > 1:
            capacity = bucket_bytes // precision.itemsize
            self.buckets = [Bucket(members) for members in divided(self._parameters[::-1], capacity)]
            for bucket in self.buckets:
                for parameter in bucket.parameters:
                    parameter.register_post_accumulate_grad_hook(self._hook(bucket))

    def __enter__(self) -> None:
        """The next backward pass is the last one of its step."""
        self._running = True
        self._counted = False
        self._next = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Start what has not started, wait for all; after an error the process ends, and waits for nothing."""
        self._running = False
        if kind is not None:
            return
        while self._next < len(self.buckets):
            self._start_next()
        for bucket in self.buckets:
            bucket.finish(self._num_ranks)
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _hook(self, bucket: Bucket) -> Callable[[Tensor], None]:
        def gradient_is_final(_: Tensor) -> None:
            if not self._running:
                return
            if not self._counted:
                for each in self.buckets:
                    each.missing = count_used_parameters_in_backward(each.parameters)
                self._counted = True
            bucket.missing -= 1
            while self._next < len(self.buckets) and self.buckets[self._next].missing == 0:
                self._start_next()

        return gradient_is_final

    def _start_next(self) -> None:
        self.buckets[self._next].start(self._precision)
        self._next += 1


def divided(parameters: Sequence[nn.Parameter], capacity: int) -> list[list[nn.Parameter]]:
    """Parameters in groups of at most `capacity` elements each; a larger one alone."""
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if not groups or parameter.numel() > room:
            groups.append([])
            room = capacity
        groups[-1].append(parameter)
        room -= parameter.numel()
    return groups
