"""What one call of an attention is, beside its tensors: lengths, heads and dropout of several MulT encoders at once.

Key j is visible to query i iff j <= i + |Tq - Tk| (the offset causal mask of the published code), by each encoder's own
lengths; frames past an encoder's length are padding. `Backend.attention` computes it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.kernels.dropout.rng import DropoutRNG, keep_scale, threshold


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """The shapes and rates of one call."""

    heads: int
    queries: tuple[int, ...]
    """Length of each encoder's query sequence."""
    keys: tuple[int, ...]
    """Length of each encoder's key sequence."""
    rates: tuple[float, ...]
    """Dropout of each encoder's attention weights."""
    last_step: bool = False
    """The query holds only the last step of each sequence: [E, B, 1, d]."""

    def rows(self, encoder: int) -> tuple[int, int]:
        """(first, end) of the query rows, numbered as in the whole sequence."""
        end = self.queries[encoder]
        return (end - 1 if self.last_step else 0), end

    def next_call_site(self, rng: DropoutRNG | None) -> int | None:
        """Call site of the weights' dropout in a pass; None: there is none."""
        return None if rng is None or not any(self.rates) else rng.next_call_site()


def attention_tables(
    queries: tuple[int, ...], keys: tuple[int, ...], rates: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """What the Triton kernels read about E encoders.

    Returns:
        [E, 3] int32, query length, key length and the threshold of dropout; [E] float32, what dropout multiplies the
        kept weights by.
    """
    shape = [(q, k, threshold(rate)) for q, k, rate in zip(queries, keys, rates, strict=True)]
    return torch.tensor(shape, dtype=torch.int32), torch.tensor([keep_scale(rate) for rate in rates])
