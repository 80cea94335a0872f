"""A transformer encoder layer over a few vectors of a sample, as PyTorch's default one: post-norm, ReLU, no mask.

Stacks of `dmd.kernels` are pre-norm, with positions and a causal mask (MulT); MISA fuses six vectors without an order.
"""

import math

import torch
from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.interface import Backend


class FusionLayer(nn.Module):
    """The layer of `nn.TransformerEncoderLayer(dim, heads, width)`, with its parameters and initial weights.

    Args:
        dim: channels of a vector (d).
        heads: of the attention.
        width: of the MLP.
        attn_rate: dropout of attention weights.
        relu_rate: dropout after the ReLU.
        res_rate: dropout of both residual branches.
    """

    def __init__(
        self, dim: int, heads: int, *, width: int, attn_rate: float, relu_rate: float, res_rate: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.attn_rate, self.relu_rate, self.res_rate = attn_rate, relu_rate, res_rate
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.fc1 = nn.Linear(dim, width)
        self.fc2 = nn.Linear(width, dim)
        self.attention_norm = nn.LayerNorm(dim)
        self.mlp_norm = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, rng: DropoutRNG | None, backend: Backend) -> Tensor:
        """Let N vectors attend to each other: x [B, N, d] to the same shape; the backend computes the dropout."""
        attended = backend.dropout(self.out_proj(self._attention(x, rng, backend)), self.res_rate, rng)
        x = self.attention_norm(x + attended)
        hidden = backend.dropout(self.fc1(x).relu(), self.relu_rate, rng)
        return self.mlp_norm(x + backend.dropout(self.fc2(hidden), self.res_rate, rng))

    def _attention(self, x: Tensor, rng: DropoutRNG | None, backend: Backend) -> Tensor:
        """[B, N, d]"""
        query, key, value = (  # [B, heads, N, d / heads]
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.in_proj(x).chunk(3, dim=-1)
        )
        scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        weights = backend.dropout(torch.softmax(scores, dim=-1), self.attn_rate, rng)  # [B, heads, N, N]
        return (weights @ value).transpose(1, 2).flatten(2)
