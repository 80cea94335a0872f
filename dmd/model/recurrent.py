"""LSTMs over padded sequences, as `pack_padded_sequence` and `nn.LSTM` compute them, wherever the padding is.

A packed sequence needs its lengths on the host. Here each sequence is moved to step 0, or turned round for the backward
direction, so that its padding follows behind and no state that is read depends on it.

LSTMs run in float32, outside autocast, under which cuDNN's LSTM computes in float16, whose largest number is 65504.
cuDNN wants the weights of an LSTM in one piece: those that an optimizer has joined with others it copies at each call,
and warns of that once. On CPUs LSTMs are bitwise reproducible; cuDNN's are, by its documentation, where
CUBLAS_WORKSPACE_CONFIG is set, as `train.deterministic` does. This file has not run on CUDA.
"""

import math

import torch
from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.interface import Backend
from dmd.model.padding import to_front

GATES = 4
"""Input, forget, cell and output gate, in the order in which torch holds their weights."""


class Recurrence(nn.Module):
    """An LSTM of one layer and one direction, with the parameters and initial weights of `nn.LSTM`: of that
    module itself `torch.export` warns.

    Args:
        features: of a step.
        hidden: units.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.weight_input = nn.Parameter(torch.empty(GATES * hidden, features))
        self.weight_hidden = nn.Parameter(torch.empty(GATES * hidden, hidden))
        self.bias_input = nn.Parameter(torch.empty(GATES * hidden))
        self.bias_hidden = nn.Parameter(torch.empty(GATES * hidden))
        bound = 1 / math.sqrt(hidden)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, features] to the hidden state after each step, [B, T, hidden], in the type of the weights."""
        weights: list[Tensor] = [self.weight_input, self.weight_hidden, self.bias_input, self.bias_hidden]
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight_input.dtype)
            start = x.new_zeros(1, x.shape[0], self.weight_hidden.shape[1])
            states, _, _ = torch.lstm(
                x,
                [start, start],
                weights,
                has_biases=True,
                num_layers=1,
                dropout=0.0,
                train=self.training,
                bidirectional=False,
                batch_first=True,
            )
        return states


class LastState(nn.Module):
    """Layers of one direction, with dropout between them.

    Args:
        features: of the input.
        hidden: channels of each layer.
        layers: one or more.
        rate: of the dropout between two layers.
    """

    def __init__(self, features: int, hidden: int, *, layers: int = 1, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate
        self.layers = nn.ModuleList(Recurrence(features if number == 0 else hidden, hidden) for number in range(layers))

    def forward(self, x: Tensor, ranges: Tensor, rng: DropoutRNG | None, backend: Backend) -> Tensor:
        """The last layer's state behind each range; of a sample without any step that behind one step of zeros.

        Args:
            x: [B, T, features].
            ranges: [B, 2], as `unpadded_range` gives them.
            rng: dropout RNG; None switches dropout off.
            backend: computes the dropout.

        Returns:
            [B, hidden].
        """
        states, lengths = to_front(x, ranges)
        for number, layer in enumerate(self.layers):
            if number:
                states = backend.dropout(states, self.rate, rng)
            states = layer(states)  # [B, T, hidden]
        return at_steps(states, last_steps(lengths)).squeeze(1)


class BidirectionalLSTM(nn.Module):
    """An LSTM of one layer in both directions.

    Args:
        features: of a step.
        hidden: units of each direction.
    """

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.ahead = Recurrence(features, hidden)
        self.back = Recurrence(features, hidden)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Read sequences that begin at step 0 (`to_front`).

        Args:
            x: [B, T, features].
            lengths: steps of each sequence, [B]; one without any is read as one step of zeros.

        Returns:
            the states [B, T, 2 * hidden] of both directions at each step, of no meaning behind a sequence; and the last
            state of each direction, [B, 2, hidden].
        """
        last = last_steps(lengths)
        reverse = (last - torch.arange(x.shape[1], device=x.device)) % x.shape[1]  # [B, T], each step once
        ahead = self.ahead(x)
        back = self.back(at_steps(x, reverse))
        final = torch.cat([at_steps(ahead, last), at_steps(back, last)], dim=1)
        return torch.cat([ahead, at_steps(back, reverse)], dim=-1), final


def last_steps(lengths: Tensor) -> Tensor:
    """The last step [B, 1] of sequences of so many steps [B]; 0 of one without any."""
    return (lengths - 1).clamp(min=0)[:, None]


def at_steps(x: Tensor, steps: Tensor) -> Tensor:
    """Some steps of each sequence: x [B, T, D], steps [B, N] -> [B, N, D]."""
    return x.gather(1, steps[..., None].expand(-1, -1, x.shape[-1]))
