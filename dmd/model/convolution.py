"""The temporal convolution that brings a modality to the width of the model (paper, section 3.1).

On CUDA it is one matrix product over windows of steps. cuDNN may choose an FFT or Winograd transform for float32,
which leaks rounding errors into steps whose whole window is padding. Those must stay exactly zero: the layer norms
that follow multiply what is there by 316 each (their epsilon is 1e-5), and the gradients of such steps by as much.
Seen on an H100: with cuDNN the convolutions' float32 gradients were 16 times as large as they should be.
"""

import torch
from torch import Tensor, nn

from dmd.model.config import ModelConfig


class TemporalConvolution(nn.Conv1d):
    """A convolution over time without bias or padding, whose weight is [channels, features, window].

    Args:
        features: of the input.
        channels: of the output.
        window: time steps that an output step sees.
    """

    def __init__(self, features: int, channels: int, window: int) -> None:
        super().__init__(features, channels, window, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, features] to [B, T - window + 1, channels]."""
        if x.device.type == "cuda":
            return windowed_product(x, self.weight)
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def windowed_product(x: Tensor, weight: Tensor) -> Tensor:
    """The same convolution as a product of windows and weights: where a window is zero, its output is exactly zero.

    Args:
        x: [B, T, features].
        weight: [channels, features, window].
    """
    if torch.is_autocast_enabled(x.device.type):  # before the windows are copied
        x = x.to(torch.get_autocast_dtype(x.device.type))
    windows = x.unfold(1, weight.shape[2], 1).transpose(2, 3).flatten(2)  # [B, T - window + 1, window * features]
    return windows @ weight.transpose(1, 2).flatten(1).T


def convolution(modality: str, config: ModelConfig, dim: int) -> nn.Module:
    """What brings a modality of `dim` features to `config.dim` channels; one that has them skips it."""
    return nn.Identity() if dim == config.dim else TemporalConvolution(dim, config.dim, config.kernels[modality])


def conv_length(modality: str, config: ModelConfig, dim: int, length: int) -> int:
    """Time steps that the temporal convolution leaves; a modality that has `config.dim` channels skips it."""
    if dim == config.dim:
        return length
    left = length - config.kernels[modality] + 1
    if left < 1:
        raise ValueError(
            f"{modality} sequences have {length} steps, fewer than model.kernel_{modality}={config.kernels[modality]}; "
            f"set model.kernel_{modality} to at most {length}"
        )
    return left
