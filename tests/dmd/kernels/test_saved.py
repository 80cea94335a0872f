"""Autograd functions get the named tuples that they kept back whole."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmd.kernels.common.saved import restore, save


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


class Single(NamedTuple):
    only: Tensor


class Keeping(torch.autograd.Function):
    """The product of two tensors; nothing else of what it keeps has a use."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        save(ctx, Pair(x, None), Single(y), Pair(y, x))
        return x * y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        missing, single, whole = restore(ctx)
        assert isinstance(missing, Pair)
        assert missing.second is None
        assert isinstance(single, Single)
        assert whole.second is not None
        assert whole.second.equal(missing.first)
        return gradients[0] * single.only, gradients[0] * missing.first


def test_what_was_saved_comes_back_under_its_names():
    x, y = (torch.tensor([2.0, 3.0]) * k for k in (1, 5))
    x.requires_grad_(), y.requires_grad_()
    Keeping.apply(x, y).sum().backward()
    assert x.grad.tolist() == y.tolist()
    assert y.grad.tolist() == x.tolist()
