"""The parameters of one pre-norm layer of E transformer encoders, in tensors `[E, ...]`; a backend computes it."""

import torch
from torch import nn

from dmd.kernels.encoder.plan import LayerWeights


class EncoderLayer(nn.Module):
    """Attention and a ReLU MLP of width 4d, each behind a layer norm and with its residual."""

    def __init__(self, num_encoders: int, dim: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(num_encoders, 3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(num_encoders, 3 * dim))
        self.out_proj_weight = nn.Parameter(torch.empty(num_encoders, dim, dim))
        self.out_proj_bias = nn.Parameter(torch.zeros(num_encoders, dim))
        self.fc1_weight = nn.Parameter(torch.empty(num_encoders, 4 * dim, dim))
        self.fc1_bias = nn.Parameter(torch.zeros(num_encoders, 4 * dim))
        self.fc2_weight = nn.Parameter(torch.empty(num_encoders, dim, 4 * dim))
        self.fc2_bias = nn.Parameter(torch.zeros(num_encoders, dim))
        self.norm_weight = nn.Parameter(torch.ones(2, num_encoders, dim))
        self.norm_bias = nn.Parameter(torch.zeros(2, num_encoders, dim))
        for weight in (self.in_proj_weight, self.out_proj_weight, self.fc1_weight, self.fc2_weight):
            for encoder in weight.data:
                nn.init.xavier_uniform_(encoder)

    def weights(self) -> LayerWeights:
        """The parameters as a backend reads them."""
        return LayerWeights(
            in_proj_weight=self.in_proj_weight,
            in_proj_bias=self.in_proj_bias,
            out_proj_weight=self.out_proj_weight,
            out_proj_bias=self.out_proj_bias,
            fc1_weight=self.fc1_weight,
            fc1_bias=self.fc1_bias,
            fc2_weight=self.fc2_weight,
            fc2_bias=self.fc2_bias,
            norm_weight=self.norm_weight,
            norm_bias=self.norm_bias,
        )
