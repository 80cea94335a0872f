"""Averages gradients over the ranks in buckets that start while backward runs: ZeRO stage 0, where DeepSpeed starts a
single one when backward has ended. At stages 1 and 2 DeepSpeed's own buckets do this.

    reduction = GradientReduction(weights, precision=torch.float32)
    loss.backward()                # passes before a step's last one
    with reduction:
        loss.backward()            # the last one: on leaving, every joined gradient is the average over the ranks

A bucket is a run of parameters that lie in one tensor, as their gradients do then. It starts once they are final and
the buckets before it have started, so every rank starts them in the same order. Its place in memory depends on the
parameters alone: the same number of ranks adds in the same order, in the first step of a session as in any other. A
parameter without a gradient gets zeros. A captured pass gives each bucket its gradient as one tensor, all at its end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmd.system.joined_weights import JoinedWeights
from dmd.testing.fault_points import fault_point
from launch.trainer.deepspeed_library import count_used_parameters_in_backward


@dataclass
class Bucket:
    """Weights whose gradients travel together."""

    weights: JoinedWeights
    missing: int = 0
    """Gradients that the running backward pass has yet to give."""
    travelling: Tensor | None = None
    """The joined gradient, while the ranks add it up."""
    work: dist.Work | None = None

    def start(self, precision: torch.dtype) -> None:
        """Join the gradients, which frees them, and send them off."""
        self.weights.join_gradients()
        assert self.weights.whole.grad is not None
        self.travelling = self.weights.whole.grad.to(precision)
        self.weights.whole.grad = None
        self.work = dist.all_reduce(self.travelling, async_op=True)
        fault_point("bucket")

    def finish(self, num_ranks: int) -> None:
        """Wait for the sum; the joined gradient is then the average, in float32."""
        assert self.work is not None
        assert self.travelling is not None
        self.work.wait()
        self.weights.whole.grad = self.travelling.float().mul_(1 / num_ranks)
        self.travelling = self.work = None


class GradientReduction:
    """Reduces the gradients of a step during its last backward pass. One rank joins them and reduces nothing.

    Args:
        weights: what is trained, a bucket each, in the order in which they start.
        precision: in which gradients travel and are added; their average is float32 again.
    """

    def __init__(self, weights: Sequence[JoinedWeights], *, precision: torch.dtype) -> None:
        self.weights = list(weights)
        self._precision = precision
        self._num_ranks = dist.get_world_size()
        self._running = False
        self._counted = False
        self._next = 0
        self.buckets: list[Bucket] = []
        if self._num_ranks > 1:
            self.buckets = [Bucket(each) for each in self.weights]
            for bucket in self.buckets:
                for leaf in bucket.weights.leaves:
                    leaf.register_post_accumulate_grad_hook(self._hook(bucket))

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
        if not self.buckets:
            for each in self.weights:
                each.join_gradients()

    def _hook(self, bucket: Bucket) -> Callable[[Tensor], None]:
        def gradient_is_final(_: Tensor) -> None:
            if not self._running:
                return
            if not self._counted:
                for each in self.buckets:
                    each.missing = count_used_parameters_in_backward(each.weights.leaves)
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
