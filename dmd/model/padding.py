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


def unpadded_mean(x: Tensor, unpadded: Tensor) -> Tensor:
    """Mean over the unpadded steps: x [B, T, D], unpadded [B, T] -> [B, D]; zeros for a sample without any."""
    weight = unpadded.to(x.dtype)  # [B, T]
    return (x * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1)


def in_range(ranges: Tensor, length: int) -> Tensor:
    """Which of `length` steps lie in the ranges [B, 2], [B, length]."""
    steps = torch.arange(length, device=ranges.device)
    return (steps >= ranges[:, :1]) & (steps < ranges[:, 1:])


def to_front(x: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences whose ranges begin with step 0, and zeros behind them, wherever their padding was.

    Args:
        x: [B, T, D].
        ranges: [B, 2], as `unpadded_range` gives them.

    Returns:
        like x, and the steps of each sample, [B].
    """
    lengths = ranges[:, 1] - ranges[:, 0]
    steps = torch.arange(x.shape[1], device=x.device)
    places = (ranges[:, :1] + steps).clamp(max=x.shape[1] - 1)  # [B, T]
    moved = x.gather(1, places[..., None].expand_as(x))
    return moved * (steps < lengths[:, None])[..., None], lengths


def resample(x: Tensor, ranges: Tensor, counts: Tensor, length: int) -> Tensor:
    """Each sample's range of steps as another number of steps, from step 0 on: a step is the mean over the part of the
    range that it stands for, in which a step counts as far as it lies there.

    Args:
        x: [B, T, D].
        ranges: [B, 2], as `unpadded_range` gives them.
        counts: steps that each sample is to have, [B], up to `length`.
        length: of the result.

    Returns:
        [B, length, D], zeros behind a sample's steps, and where it had none; in float32 at least.
    """
    steps = torch.arange(length, device=x.device)
    old = torch.arange(x.shape[1], device=x.device)
    width = (ranges[:, 1] - ranges[:, 0]) / counts.clamp(min=1)  # [B], old steps of a new one
    begin = ranges[:, :1] + steps * width[:, None]  # [B, length]
    end = begin + width[:, None]
    overlap = torch.minimum(end[..., None], old + 1.0) - torch.maximum(begin[..., None], old.to(end.dtype))
    share = overlap.clamp(min=0) / width.clamp(min=1 / max(length, 1))[:, None, None]  # [B, length, T]
    share = share * in_range(torch.stack([torch.zeros_like(counts), counts], 1), length)[..., None]
    with torch.autocast(x.device.type, enabled=False):  # shares of 8 bits would not sum to 1
        dtype = torch.promote_types(x.dtype, torch.float32)
        return share.to(dtype) @ x.to(dtype)
