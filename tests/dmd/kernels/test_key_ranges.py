"""Attention over the unpadded frames of each sample only, against dense float64 attention."""

import math

import pytest
import torch
from torch import Tensor

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.keys import number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder.plan import StackPlan
from dmd.kernels.portable import PORTABLE
from dmd.model.transformer import TransformerStack
from tests.dmd.kernels.block_attention import block_attention

BATCH, HEADS, WIDTH = 4, 2, 5
SHAPES = [((7, 7), (7, 7)), ((9, 6), (5, 8)), ((4,), (11,)), ((80,), (70,))]


def make(queries, keys, last_step, dtype=torch.float64, rate=0.0):
    """A plan, query, key and value, and ranges: padded left, padded right, nothing real, everything real."""
    generator = torch.Generator().manual_seed(0)
    plan = AttentionPlan(heads=HEADS, queries=queries, keys=keys, rates=(rate,) * len(keys), last_step=last_step)
    steps = (1 if last_step else max(queries), max(keys), max(keys))
    parts = [
        torch.randn(len(keys), BATCH, t, HEADS * WIDTH, generator=generator, dtype=torch.float64).to(dtype)
        for t in steps
    ]
    key_ranges = torch.tensor([[[2, t], [0, t - 2], [3, 3], [0, t]] for t in keys], dtype=torch.int32)
    return plan, [part.requires_grad_() for part in parts], key_ranges


def dense(query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan, key_ranges: Tensor) -> Tensor:
    """One row of one sample at a time, over the keys it sees and no other."""
    out = torch.zeros_like(query)
    for e, tq in enumerate(plan.queries):
        for b in range(query.shape[1]):
            begin, end = key_ranges[e, b].tolist()
            for place, row in enumerate([tq - 1] if plan.last_step else range(tq)):
                seen = slice(begin, min(end, plan.keys[e], row + abs(tq - plan.keys[e]) + 1))
                q = query[e, b, place].unflatten(0, (plan.heads, -1))
                k, v = (x[e, b, seen].unflatten(1, (plan.heads, -1)) for x in (key, value))
                scores = torch.einsum("hc,khc->hk", q, k) / math.sqrt(q.shape[-1])
                out[e, b, place] = torch.einsum("hk,khc->hc", scores.softmax(-1), v).flatten()
    return out


def results(form, parts, *arguments):
    """Output and gradients."""
    out = form(*parts, *arguments)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), parts)]


@pytest.mark.parametrize("last_step", [False, True])
@pytest.mark.parametrize("queries, keys", SHAPES)
def test_equal_to_dense_attention(queries, keys, last_step):
    plan, parts, key_ranges = make(queries, keys, last_step)
    want = results(dense, parts, plan, key_ranges)
    for got, right in zip(results(block_attention, parts, plan, None, key_ranges), want, strict=True):
        assert torch.allclose(got, right, rtol=0, atol=1e-12)
    for got, right in zip(results(PORTABLE.attention, parts, plan, None, key_ranges), want, strict=True):
        assert torch.allclose(got, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("last_step", [False, True])
@pytest.mark.parametrize("queries, keys", SHAPES)
def test_scores_whose_exponentials_would_overflow(queries, keys, last_step):
    plan, parts, key_ranges = make(queries, keys, last_step)
    parts[0] = (parts[0].detach() * 1000).requires_grad_()
    want = results(dense, parts, plan, key_ranges)
    for got, right in zip(results(block_attention, parts, plan, None, key_ranges), want, strict=True):
        assert torch.allclose(got, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("last_step", [False, True])
def test_a_row_without_keys_gives_zero_and_no_gradient(last_step):
    plan, parts, key_ranges = make((6, 6), (6, 6), last_step, torch.float32)
    key_ranges[:, 0] = torch.tensor([4, 6])  # the first four rows see nothing
    out, *gradients = results(block_attention, parts, plan, None, key_ranges)
    assert all(bool(x.isfinite().all()) for x in (out, *gradients))
    assert float(out[:, 2].abs().max()) == 0  # sample 2 has no real frame
    assert all(float(x[:, 2].abs().max()) == 0 for x in gradients)
    if not last_step:
        assert float(out[:, 0, :4].abs().max()) == 0
        assert float(gradients[0][:, 0, :4].abs().max()) == 0
    assert all(float(x[:, 0, :4].abs().max()) == 0 for x in gradients[1:])


def rng() -> DropoutRNG:
    return DropoutRNG(seed=1, step=2, samples=number_samples([3, 8], range(BATCH // 2)), device=torch.device("cpu"))


@pytest.mark.parametrize("queries, keys, fast", [((6, 4), (4, 6), False), ((50,), (37,), True), ((80,), (70,), True)])
def test_gradient_with_dropout(queries, keys, fast):
    plan, parts, key_ranges = make(queries, keys, False, rate=0.3)
    assert torch.autograd.gradcheck(lambda *x: block_attention(*x, plan, rng(), key_ranges), parts, fast_mode=fast)


def test_whole_ranges_change_nothing():
    plan, parts, _ = make((9, 6), (5, 8), False, torch.float32, rate=0.3)
    key_ranges = torch.tensor([[0, 5], [0, 8]])[:, None].expand(-1, BATCH, -1)
    pairs = zip(
        results(block_attention, parts, plan, rng(), key_ranges),
        results(block_attention, parts, plan, rng()),
        strict=True,
    )
    assert all(torch.equal(got, want) for got, want in pairs)


@pytest.mark.parametrize("cross", [False, True])
def test_a_stack_does_not_read_frames_that_are_not_real(cross):
    torch.manual_seed(0)
    lengths = [7, 12]
    keys = lengths[::-1] if cross else lengths
    plan = StackPlan(
        dim=8,
        heads=2,
        levels=2,
        queries=tuple(lengths),
        keys=tuple(keys),
        attn_rates=(0.0, 0.0),
        relu_rate=0.0,
        res_rate=0.0,
        embed_rate=0.0,
        last_step=not cross,
    )
    stack = TransformerStack(plan)
    inputs = [torch.randn(BATCH, t, 8) for t in lengths]
    key_ranges = [torch.tensor([[3, t]] * BATCH) for t in keys]
    outputs = []
    for filling in (0.0, 5.0):
        there = [x.clone() for x in (inputs if not cross else inputs[::-1])]
        for x in there:
            x[:, :3] += filling
        outputs.append(stack(inputs, there, key_ranges=key_ranges) if cross else stack(there, key_ranges=key_ranges))
    assert all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    whole = stack(inputs, inputs[::-1]) if cross else stack(inputs)
    assert not any(torch.allclose(a, b) for a, b in zip(whole, outputs[0], strict=True))
