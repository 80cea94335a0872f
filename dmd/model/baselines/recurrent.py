"""Bidirectional LSTMs over sequences with padding, as `pack_padded_sequence` and `nn.LSTM` compute them.

A packed sequence needs its lengths on the host. Here each direction reads every sequence from its own first step, so
that padding follows behind and reaches nothing that is used: the forward direction sees steps begin, begin + 1, ... and
the backward direction end - 1, end - 2, ..., both cyclic. Every step is read once, so the gradient of the reordering is
free of sums and the same in every run.

They run outside autocast, in float32: for it cuDNN's LSTM would be one of float16, whose largest number is 65504. cuDNN
wants the weights of an LSTM in one piece; those that an optimizer has joined with others it copies at each call, and
says so once. On CPUs results are bitwise reproducible; cuDNN's LSTM is, as its documentation has it, where
CUBLAS_WORKSPACE_CONFIG is set, as `train.deterministic` does. It has not run on CUDA.
"""

import math

import torch
from torch import Tensor, nn

GATES = 4
"""Input, forget, cell and output gate, in the order in which torch holds their weights."""


class Recurrence(nn.Module):
    """An LSTM of one layer and one direction with the parameters of `nn.LSTM`. Initial weights are torch's, but those
    of the recurrence are orthogonal (MISA: `init.orthogonal_` of `weight_hh`).

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
        for parameter in (self.weight_input, self.bias_input, self.bias_hidden):
            nn.init.uniform_(parameter, -bound, bound)
        nn.init.orthogonal_(self.weight_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, features] to the hidden state after each step, [B, T, hidden]."""
        start = x.new_zeros(1, x.shape[0], self.weight_hidden.shape[1])
        weights: list[Tensor] = [self.weight_input, self.weight_hidden, self.bias_input, self.bias_hidden]
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
        """Read sequences that begin at step 0.

        Args:
            x: [B, T, features].
            lengths: steps of each sequence, at least 1, [B].

        Returns:
            the states [B, T, 2 * hidden] of both directions at each step, of no meaning behind a sequence; and the last
            state of each direction, [B, 2, hidden].
        """
        reverse = reversed_steps(lengths, x.shape[1])
        ahead = self.ahead(x)
        back = self.back(at_steps(x, reverse))
        last = (lengths - 1)[:, None]  # [B, 1]
        final = torch.cat([at_steps(ahead, last), at_steps(back, last)], dim=1)
        return torch.cat([ahead, at_steps(back, reverse)], dim=-1), final


def reversed_steps(lengths: Tensor, steps: int) -> Tensor:
    """[B, T]: the steps of sequences that begin at 0, from their ends to their beginnings; what is behind them follows.

    Args:
        lengths: [B].
        steps: T.
    """
    return (lengths[:, None] - 1 - torch.arange(steps, device=lengths.device)) % steps


def at_steps(x: Tensor, steps: Tensor) -> Tensor:
    """Some steps of each sequence: x [B, T, D], steps [B, N] -> [B, N, D]."""
    return x.gather(1, steps[..., None].expand(-1, -1, x.shape[-1]))


def from_first_step(x: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Move sequences to step 0.

    Args:
        x: [B, T, D].
        ranges: [B, 2], begin and end of the unpadded steps (`dmd.model.padding`); a sample without any has its first
            step.

    Returns:
        x with each sequence at its beginning, and the lengths [B].
    """
    begin, end = ranges.unbind(1)
    steps = (begin[:, None] + torch.arange(x.shape[1], device=x.device)) % x.shape[1]
    return at_steps(x, steps), (end - begin).clamp(min=1)
