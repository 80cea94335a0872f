"""Rows of channels as the Triton kernels keep them in memory: each begins at a multiple of 16 bytes.

A tensor of rows is [E, B, T, C]: encoders, samples and steps, whose rows follow each other, and C channels of a row.
The d channels of something (a residual stream, queries, an operand of a product) fill a slot of S = `slot(d)` channels,
d padded to a multiple of `SLOT_CHANNELS`. A row is one slot, or several side by side. Kernels know both numbers when
they are compiled, so that a thread reads and writes 16 bytes at once.

**The channels of a slot past d are 0.** Kernels write whole slots, with zeros there, and read whole slots; none masks
the padding. Steps past an encoder's length are neither written nor read. Tensors of torch have no slots: the embedding
of a stack reads them as they lie, and its last norm reads the gradient that it is given.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dmd.kernels.common.block_sizes import SLOT_CHANNELS, slot

MOST_ELEMENTS = 2**31 - 1
"""Of an encoder in a tensor of rows: kernels count them in 32 bits, and in 64 between encoders."""


class PassTooLarge(ValueError):
    """A pass has more rows at once than the kernels count."""


def empty_rows(like: Tensor, steps: int, channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[E, B, steps, channels], whole slots, for the encoders and samples of `like` [E, B, ...] and on its device.

    Raises:
        PassTooLarge: an encoder would have more than `MOST_ELEMENTS`.
    """
    assert channels % SLOT_CHANNELS == 0
    encoders, batch = like.shape[:2]
    elements = batch * steps * channels
    if elements > MOST_ELEMENTS:
        raise PassTooLarge(
            f"{batch} samples of {steps} steps at once are {elements} elements of a tensor, and the Triton kernels "
            f"count {MOST_ELEMENTS}; lower train.ghost_batches_per_forward, or leave it at auto"
        )
    return torch.empty(encoders, batch, steps, channels, device=like.device, dtype=dtype)


def padded_rows(x: Tensor) -> Tensor:
    """A tensor of torch [E, B, T, d] as rows [E, B, T, S]; copied unless it lies like that."""
    padding = slot(x.shape[-1]) - x.shape[-1]
    return F.pad(x, (0, padding)) if padding else x.contiguous().view(-1).view(x.shape)


def row_channels(x: Tensor) -> int:
    """Channels of a row of which x [E, B, T, C] are some neighbouring slots."""
    _, batch, steps, _ = x.shape
    channels = x.stride(2)
    assert x.stride() == (batch * steps * channels, steps * channels, channels, 1)
    assert channels % SLOT_CHANNELS == 0
    return channels
