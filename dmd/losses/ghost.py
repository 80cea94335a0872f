"""Means over the valid samples of a ghost batch. A mask [G, S] is 1 for a sample and 0 for padding."""

from torch import Tensor


def num_valid(mask: Tensor) -> Tensor:
    """Valid samples of each ghost batch, at least 1: [G, S] -> [G]."""
    return mask.sum(1).clamp(min=1)


def sample_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over samples: values [G, S, ...], mask [G, S] -> [G, ...]."""
    weight = mask / num_valid(mask)[:, None]  # [G, S]
    return (values * weight.reshape(weight.shape + (1,) * (values.dim() - 2))).sum(1)
