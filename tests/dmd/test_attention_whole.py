"""The exportable form of attention is the plain one, whatever the lengths."""

import pytest
import torch

from dmd.kernels.attention import AttentionPlan, attention
from dmd.kernels.attention_whole import whole_attention


@pytest.mark.parametrize("last_step", [False, True])
@pytest.mark.parametrize("queries, keys", [((7, 7), (7, 7)), ((9, 6), (5, 8)), ((4,), (11,))])
def test_equal_to_the_plain_form(queries, keys, last_step):
    generator = torch.Generator().manual_seed(0)
    plan = AttentionPlan(heads=2, queries=queries, keys=keys, rates=(0.0,) * len(queries), last_step=last_step)
    steps = 1 if last_step else max(queries)
    query, key, value = (
        torch.randn(len(queries), 3, length, 8, generator=generator) for length in (steps, max(keys), max(keys))
    )
    got, want = whole_attention(query, key, value, plan), attention(query, key, value, plan, None)
    assert got.numpy() == pytest.approx(want.numpy(), abs=1e-6)
