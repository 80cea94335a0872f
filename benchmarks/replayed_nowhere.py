"""A captured pass without a device: what surrounds a CUDA graph runs, the graph does not."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmd.system.cuda_graph import CapturedPass


class ReplayedNowhere(CapturedPass):
    """A captured pass whose replays do nothing: its terms are ones and its gradients zeros."""

    def _graphed(
        self, run: Callable[..., tuple[Tensor, Tensor]], samples: tuple[Tensor, ...]
    ) -> Callable[..., tuple[Tensor, Tensor]]:
        """As `torch.cuda.make_graphed_callables` replays, but for the replays."""
        surface = tuple(samples)
        outputs = tuple(torch.ones_like(output).detach() for output in run(*samples))
        grad_total = torch.zeros_like(outputs[0])
        grads = tuple(torch.zeros_like(x) if x.requires_grad else None for x in surface)

        class Graphed(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
                for own, given in zip(surface, inputs, strict=True):
                    if own.data_ptr() != given.data_ptr():
                        own.copy_(given)
                return tuple(output.detach() for output in outputs)

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
                if grad_total.data_ptr() != gradients[0].data_ptr():
                    grad_total.copy_(gradients[0])
                return tuple(None if grad is None else grad.detach() for grad in grads)

        def replay(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            result: tuple[Tensor, Tensor] = Graphed.apply(*torch.utils._pytree.arg_tree_leaves(*inputs))
            return result

        return replay
