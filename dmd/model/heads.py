"""Prediction heads: a residual MLP and a linear output; and the sigmoid gate before the final fusion."""

from typing import NamedTuple

from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.interface import Backend


def prediction_of(logit: Tensor) -> Tensor:
    """What a linear output [B, outputs] predicts: [B] of one output, else the logits."""
    return logit.squeeze(-1) if logit.shape[-1] == 1 else logit


class HeadOutput(NamedTuple):
    """What a head gives."""

    logit: Tensor
    """[B], or [B, classes]."""
    hidden: Tensor
    """[B, hidden], after the ReLU, before the dropout: what HomoGD distils (the published in-place ReLU)."""
    residual: Tensor
    """[B, n], input plus MLP: what HeteroGD distils."""


class ResidualHead(nn.Module):
    """out(W2 dropout(relu(W1 h)) + h)."""

    def __init__(self, width: int, hidden: int, rate: float, outputs: int = 1) -> None:
        super().__init__()
        self.rate = rate
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.out = nn.Linear(width, outputs)

    def forward(self, h: Tensor, rng: DropoutRNG | None, backend: Backend) -> HeadOutput:
        """Predict from h [B, n]; the backend computes the dropout."""
        hidden = self.fc1(h).relu()
        residual = self.fc2(backend.dropout(hidden, self.rate, rng)) + h
        return HeadOutput(prediction_of(self.out(residual)), hidden, residual)
