"""Trained weights that lie one after the other in one tensor, as their gradients do.

A step that clips, adds up and updates a few long tensors costs the host a fraction of what hundreds of short ones do.
The parameters stay what they were to the modules, by name, shape and alignment; only their memory is part of a longer
tensor, which is what an optimizer updates.

    weights = JoinedWeights({name: parameter, ...})
    loss.backward()                  # each parameter gets its gradient
    weights.join_gradients()         # weights.whole has all of them
    optimizer.step()                 # Adam([weights.whole]) changes every parameter
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

ALIGNMENT = 128
"""Elements: a parameter begins at a multiple of 512 bytes, as where torch allocates it on CUDA."""


class JoinedWeights:
    """Parameters as one. One parameter alone is its own whole, and its memory stays where it is.

    Args:
        parameters: by name; float32, on one device. Their memory moves.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        first = next(iter(self.parameters.values()))
        sizes = [parameter.numel() for parameter in self.parameters.values()]
        zeros = torch.zeros(ALIGNMENT, device=first.device)
        self._gaps = [zeros[: -size % ALIGNMENT] for size in sizes]
        """What follows each parameter."""
        self._sizes = [number for size, gap in zip(sizes, self._gaps, strict=True) for number in (size, len(gap))]
        self.whole = first
        """What an optimizer updates: [elements], with zeros between parameters; a single parameter in its shape."""
        if not self.alone:
            assert all(parameter.dtype == torch.float32 for parameter in self.parameters.values())
            self.whole = nn.Parameter(self.joined([parameter.data for parameter in self.parameters.values()]))
            for parameter, part in zip(self.parameters.values(), self.parts(self.whole.data), strict=True):
                parameter.data = part

    @property
    def alone(self) -> bool:
        """Whether this is one parameter."""
        return len(self.parameters) == 1

    @property
    def leaves(self) -> list[nn.Parameter]:
        """What autograd may give a gradient: each parameter, or the whole where a captured pass reads that."""
        return [*self.parameters.values()] if self.alone else [*self.parameters.values(), self.whole]

    def parts(self, whole: Tensor) -> list[Tensor]:
        """Each parameter's part, in its shape, of a tensor like `whole`."""
        if self.alone:
            return [whole]
        runs = whole.split(self._sizes)[::2]
        return [run.view_as(parameter) for run, parameter in zip(runs, self.parameters.values(), strict=True)]

    def joined(self, parts: Sequence[Tensor | None]) -> Tensor:
        """A tensor like `whole` of these parts, with zeros for None; of one parameter the part itself."""
        pairs = zip(parts, self.parameters.values(), strict=True)
        given = [torch.zeros_like(parameter) if part is None else part for part, parameter in pairs]
        if self.alone:
            return given[0]
        return torch.cat([run for part, gap in zip(given, self._gaps, strict=True) for run in (part.reshape(-1), gap)])

    def join_gradients(self) -> None:
        """Move the parameters' gradients to that of the whole, with zeros where one has none; a captured pass has given
        it as one already."""
        if self.whole.grad is not None:
            return
        self.whole.grad = self.joined([parameter.grad for parameter in self.parameters.values()])
        if not self.alone:
            for parameter in self.parameters.values():
                parameter.grad = None

    def gradient_norms(self) -> Tensor:
        """Norms of short rows of the gradient. One sum of millions of squares in float32 is 1e-4 off on a CPU."""
        assert self.whole.grad is not None
        rows = self.whole.grad if self.alone else self.whole.grad.view(-1, ALIGNMENT)
        return torch.linalg.vector_norm(rows, dim=-1)

    def differentiable_parts(self, whole: Tensor) -> tuple[Tensor, ...]:
        """`parts`, whose gradients autograd joins."""
        if self.alone:
            return (whole,)
        parts: tuple[Tensor, ...] = _Parts.apply(whole, self)  # type: ignore[no-untyped-call]
        return parts


class _Parts(torch.autograd.Function):
    """Parts of a whole. To autograd, slices would each be a gradient of the whole's size."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, weights: JoinedWeights) -> tuple[Tensor, ...]:
        ctx.weights = weights
        ctx.set_materialize_grads(False)
        return tuple(weights.parts(whole))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor, None]:
        return ctx.weights.joined(gradients), None


def each_alone(parameters: Iterable[tuple[str, nn.Parameter]]) -> list[JoinedWeights]:
    """Every trained parameter as a whole of its own."""
    return [JoinedWeights({name: parameter}) for name, parameter in parameters if parameter.requires_grad]
