"""Which time steps of a sample are real: the base of `model.masked_padding`, an improvement over the published code.

Features pad with frames of zeros, at the front or at the back; tokens say it in their attention mask. A range (begin,
end) goes from the first to the last real step; a sample without any has (0, 0).
"""

import torch
from torch import Tensor


def real_steps(x: Tensor) -> Tensor:
    """Which frames of x [B, T, D] are not all zero, [B, T]."""
    return (x != 0).any(-1)


def valid_range(real: Tensor, kernel: int) -> Tensor:
    """(begin, end) of the real steps behind a convolution without padding that reads `kernel` steps.

    Args:
        real: [B, T], bool.
        kernel: 1 where nothing is convolved.

    Returns:
        [B, 2] int64, of steps whose window holds a step between the first and the last real one.
    """
    length = real.shape[1]
    steps = torch.arange(length, device=real.device)
    end = torch.where(real, steps + 1, 0).amax(1)
    begin = torch.where(real, steps, length).amin(1)
    begin = torch.where(end > 0, (begin - kernel + 1).clamp(min=0), 0)
    return torch.stack([begin, end.clamp(max=length - kernel + 1)], dim=1)
