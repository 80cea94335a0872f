"""Attention in PyTorch (`Backend.attention`), right on any device: what `torch.export` writes down and what a GPU
runs that has no Triton kernels.

Whole attention matrices of some samples at a time, one encoder after the other. Every tensor is made on the device and
no value is read, so a GPU never waits. Training does not keep the matrices: backward computes them again, with the same
dropout.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.rng import DropoutRNG, draw_keep_mask, keep_scale

BLOCK_ELEMENTS = 2**25
"""Attention weights that are computed at once: 128 MiB in float32."""


def torch_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: AttentionPlan,
    *,
    rng: DropoutRNG | None = None,
    call_site: int | None = None,
    key_ranges: Tensor | None = None,
    one_block: bool = False,
) -> Tensor:
    """As `Backend.attention`: query [E, B, Tq, d], key and value [E, B, Tk, d] -> like `query`.

    Args:
        call_site: the dropout's call site, as `DropoutRNG.next_call_site` gave it; None: no dropout.
        one_block: compute all samples at once, however many there are; keeps the matrices for backward.
    """
    keys = None  # [E, B, 2]
    if rng is not None and call_site is not None:
        keys = rng.table([(call_site, encoder) for encoder in range(len(plan.queries))])
    mixed = []
    for e, (tq, tk) in enumerate(zip(plan.queries, plan.keys, strict=True)):
        rows = 1 if plan.last_step else tq
        encoder = _Encoder(plan, e, one_block=one_block)
        parts = (
            query[e, :, :rows],
            key[e, :, :tk],
            value[e, :, :tk],
            keys[e] if keys is not None and plan.rates[e] > 0 else None,
            None if key_ranges is None else key_ranges[e],
        )
        mixed.append(F.pad(encoder.run(*parts), (0, 0, 0, query.shape[2] - rows)))
    return torch.stack(mixed)


class _Encoder:
    """The attention of one encoder of a plan."""

    def __init__(self, plan: AttentionPlan, encoder: int, *, one_block: bool) -> None:
        self.heads, self.one_block = plan.heads, one_block
        self.queries, self.keys, self.rate = plan.queries[encoder], plan.keys[encoder], plan.rates[encoder]
        self.first, _ = plan.rows(encoder)

    def run(self, query: Tensor, key: Tensor, value: Tensor, drawn: Tensor | None, key_ranges: Tensor | None) -> Tensor:
        """query [B, Tq, d], key and value [B, Tk, d], dropout keys [B, 2], key ranges [B, 2] -> [B, Tq, d]."""
        if self.one_block:
            return self._block(query, key, value, drawn, key_ranges)
        size = max(1, BLOCK_ELEMENTS // (self.heads * query.shape[1] * self.keys))
        found = []
        for begin in range(0, len(query), size):
            end = begin + size
            drawn_here = None if drawn is None else drawn[begin:end]
            ranges_here = None if key_ranges is None else key_ranges[begin:end]
            part = (query[begin:end], key[begin:end], value[begin:end], drawn_here, ranges_here)
            if torch.is_grad_enabled():
                found.append(checkpoint(self._block, *part, use_reentrant=False, preserve_rng_state=False))
            else:
                found.append(self._block(*part))
        return torch.cat(found)

    def _block(
        self, query: Tensor, key: Tensor, value: Tensor, drawn: Tensor | None, key_ranges: Tensor | None
    ) -> Tensor:
        """As `run`, of some samples."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))  # [b, H, T, h]
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # [b, H, Tq, Tk]
        seen = self._seen(query.device)  # [Tq, Tk]
        if key_ranges is not None:
            column = torch.arange(self.keys, device=query.device)
            first, end = key_ranges[:, None, None, None].unbind(-1)  # [b, 1, 1, 1]
            seen = seen & (first <= column) & (column < end)
        lowest = torch.finfo(scores.dtype).min  # not -inf: a row that sees nothing has to stay finite
        weights = torch.softmax(scores.masked_fill(~seen, lowest), dim=-1) * seen
        if drawn is not None:
            weights = weights * self._keep_mask(drawn) * keep_scale(self.rate)
        return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(-2)

    def _rows(self, device: torch.device) -> Tensor:
        """Numbers of the query rows in the whole sequence, [Tq]."""
        return torch.arange(self.first, self.queries, device=device, dtype=torch.int32)

    def _seen(self, device: torch.device) -> Tensor:
        """Which keys a query row sees by the offset causal mask, [Tq, Tk]."""
        column = torch.arange(self.keys, device=device)
        return column <= self._rows(device)[:, None] + abs(self.queries - self.keys)

    def _keep_mask(self, drawn: Tensor) -> Tensor:
        """1 where dropout keeps a weight, else 0: [b, H, Tq, Tk], int16; the elements of `rng`."""
        device, words = drawn.device, (self.keys + 1) // 2
        head = torch.arange(self.heads, device=device, dtype=torch.int32)  # [H]
        row = head[:, None] * self.queries + self._rows(device)  # [H, Tq]
        word = row[..., None] * words + torch.arange(words, device=device, dtype=torch.int32)
        low, high = drawn[:, :, None, None, None].unbind(1)  # [b, 1, 1, 1]
        return draw_keep_mask(word, self.rate, (low, high))[..., : self.keys]
