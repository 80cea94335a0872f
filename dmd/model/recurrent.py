"""LSTMs over padded sequences: the state behind the last unpadded step, wherever the padding is."""

from torch import Tensor, nn

from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.interface import Backend
from dmd.model.padding import to_front


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
        self.layers = nn.ModuleList(
            nn.LSTM(features if number == 0 else hidden, hidden, batch_first=True) for number in range(layers)
        )

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
            states, _ = layer(states)  # [B, T, hidden]
        last = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[-1])
        return states.gather(1, last).squeeze(1)
