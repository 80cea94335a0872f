"""The form of `dmd.kernels.attention` that `torch.export` can write down: whole matrices, no dropout, any batch size.

The other two forms cut their work by the size of the batch, which a program has to leave open.
"""

import torch
from torch import Tensor

from dmd.kernels.attention import AttentionPlan


def whole_attention(
    query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, valid: Tensor | None = None
) -> Tensor:
    """As `attention` without noise: query [E, B, Tq, d], key and value [E, B, Tk, d] -> like `query`."""
    head_dim = query.shape[-1] // plan.heads
    q, k, v = (x.unflatten(-1, (plan.heads, head_dim)).transpose(2, 3) for x in (query, key, value))
    column = torch.arange(key.shape[2], device=query.device)
    visible, there = [], []
    for encoder, (tq, tk) in enumerate(zip(plan.queries, plan.keys, strict=True)):
        first, _ = plan.rows(encoder)
        row = torch.arange(first, first + query.shape[2], device=query.device)
        visible.append((column <= row[:, None] + abs(tq - tk)) & (column < tk))
        there.append(row < tq)
    scores = (q @ k.transpose(-1, -2)).float() * head_dim**-0.5  # [E, B, H, Tq, Tk]
    seen = torch.stack(visible)[:, None, None]  # [E, 1, 1, Tq, Tk]
    if valid is not None:
        begin, end = valid[:, :, None, None, None].unbind(-1)  # [E, B, 1, 1, 1]
        seen = seen & (begin <= column) & (column < end)
    lowest = torch.finfo(scores.dtype).min  # not -inf: a row that sees nothing has to stay finite
    weights = torch.softmax(scores.masked_fill(~seen, lowest), dim=-1) * seen
    mixed = weights.to(v.dtype) @ v  # [E, B, H, Tq, d / H]
    return mixed.transpose(2, 3).flatten(-2) * torch.stack(there)[:, None, :, None]
