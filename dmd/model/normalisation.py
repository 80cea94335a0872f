"""Features to mean 0 and standard deviation 1, by the statistics of the train split, as a part of the network.

The statistics are buffers, so a checkpoint or an export carries them and reads raw features as the training did.
"""

import torch
from torch import Tensor, nn

CONSTANT = 1e-6
"""A feature with a standard deviation of at most this part of its mean is constant but for rounding: only centred."""
PRESENT = 1e-6
"""What stands for an exact 0 in channel 0 of a frame that is there."""


class Normalisation(nn.Module):
    """(x - mean) / std of each feature of one modality; frames that are all zero are padding and stay so.

    The encoders give no position to a frame whose channel 0 is exactly 0 (the published rule). A frame that is there
    keeps its position: where its channel 0 becomes exactly 0 it is `PRESENT` standard deviations instead.

    Args:
        dim: features of a frame.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def set(self, mean: list[float], std: list[float]) -> None:
        """Take over statistics, one number per feature."""
        means, deviations = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
        constant = deviations <= CONSTANT * means.abs()
        scale = torch.where(constant, 1.0, 1 / torch.where(constant, 1.0, deviations))
        self.get_buffer("mean").copy_(means)
        self.get_buffer("scale").copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] to the same shape."""
        present = (x != 0).any(-1, keepdim=True)
        scaled = (x - self.get_buffer("mean")) * self.get_buffer("scale")
        first, rest = scaled[..., :1], scaled[..., 1:]
        return torch.cat([torch.where(first == 0, PRESENT, first), rest], dim=-1) * present
