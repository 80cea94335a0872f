"""What stands where a published baseline normalises features over the samples of a batch."""

from torch import nn


def scale(dim: int) -> nn.Module:
    """A layer norm over the `dim` features of a step; a single feature, of which it would leave nothing, stays as is.

    Numbers of a sample then depend on no other sample, and so not on the number of ranks. Features of very different
    sizes need `model.normalise: train` before it.
    """
    return nn.LayerNorm(dim) if dim > 1 else nn.Identity()
