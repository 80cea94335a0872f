"""Which time steps of a sample are not padding: the base of `model.masked_padding`, an improvement over the published
code.

Features pad with frames of zeros, at the front or at the back; tokens say it in their attention mask. A range (begin,
end) goes from the first to the last unpadded step; a sample without any has (0, 0).
"""

import torch
from torch import Tensor


def unpadded_steps(x: Tensor) -> Tensor:
    """Which frames of x [B, T, D] are not all zero, [B, T]."""
    return (x != 0).any(-1)


def unpadded_range(unpadded: Tensor, kernel: int) -> Tensor:
    """(begin, end) of the unpadded steps behind a convolution without padding that reads `kernel` steps.

    Args:
        unpadded: [B, T], bool.
        kernel: 1 where nothing is convolved.

    Returns:
        [B, 2] int64, of steps whose window holds a step between the first and the last unpadded one.
    """
    length = unpadded.shape[1]
    steps = torch.arange(length, device=unpadded.device)
    end = torch.where(unpadded, steps + 1, 0).amax(1)
    begin = torch.where(unpadded, steps, length).amin(1)
    begin = torch.where(end > 0, (begin - kernel + 1).clamp(min=0), 0)
    return torch.stack([begin, end.clamp(max=length - kernel + 1)], dim=1)
