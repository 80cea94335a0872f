"""Attention of several MulT encoders at once, without ever holding an attention matrix.

Query, key and value are `[E, B, T, d]` for E encoders. Key j is visible to query i iff j <= i + |Tq - Tk| (the offset
causal mask of the published code), by each encoder's own lengths; frames past an encoder's length are padding.
Memory is linear in the lengths: backward computes the weights again, dropout included.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmd.kernels.noise import Noise


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """The shapes and rates of one call, and the form that computes it."""

    heads: int
    queries: tuple[int, ...]
    """Length of each encoder's query sequence."""
    keys: tuple[int, ...]
    """Length of each encoder's key sequence."""
    rates: tuple[float, ...]
    """Dropout of each encoder's attention weights."""
    last_step: bool = False
    """The query holds only the last step of each sequence: [E, B, 1, d]."""
    fused: bool = False
    """One Triton launch for all encoders, instead of plain torch."""
    whole: bool = False
    """Plain torch computes as on a GPU (`dmd.kernels.attention_torch`) on a CPU too."""

    def rows(self, encoder: int) -> tuple[int, int]:
        """(first, end) of the query rows, numbered as in the whole sequence."""
        end = self.queries[encoder]
        return (end - 1 if self.last_step else 0), end

    def visible(self, encoder: int, row: int) -> int:
        """How many keys a query row sees."""
        return min(self.keys[encoder], row + abs(self.queries[encoder] - self.keys[encoder]) + 1)


def attention(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, noise: Noise | None, valid: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(d / H) + mask) v with dropout on the weights.

    Args:
        query: [E, B, Tq, d], or [E, B, 1, d] with `plan.last_step`.
        key: [E, B, Tk, d].
        value: [E, B, Tk, d].
        noise: random source of the dropout; None switches it off.
        valid: [E, B, 2], integers: first real key frame of each sample and the end of its real key frames. Key j is
            then visible only where begin <= j < end too. None (the published behaviour): every frame is real.

    Returns:
        like `query`; rows past an encoder's length, and rows that see no key, are zero and pass no gradient.
    """
    exporting = torch.compiler.is_exporting()
    site = None if noise is None or not any(plan.rates) else noise.next_site()
    if plan.fused and not exporting:
        from dmd.kernels.attention_fused import FusedAttention

        return FusedAttention.apply(query, key, value, plan, noise, site, valid)
    if exporting or plan.whole or query.device.type != "cpu":
        from dmd.kernels.attention_torch import torch_attention

        return torch_attention(query, key, value, plan, noise, site, valid)
    from dmd.kernels.attention_plain import PlainAttention

    return PlainAttention.apply(query, key, value, plan, noise, site, valid)
