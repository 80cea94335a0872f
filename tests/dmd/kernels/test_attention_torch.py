"""Attention in PyTorch for any device equals the CPU's blocks: values, gradients, dropped elements."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dmd.kernels.attention import exportable
from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.cpu import CPU as ON_CPU
from dmd.kernels.dropout.keys import DropoutKeys, number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.portable import PORTABLE
from dmd.losses import Objective, ObjectiveConfig
from dmd.model import DMD
from tests.dmd.kernels.block_attention import block_attention
from tests.support.small_system import GHOSTS, LENGTHS, MODEL, SAMPLES, SIZES

CPU = torch.device("cpu")
BATCH, GHOST = 6, 3
SHAPES = [((7, 7), (7, 7)), ((9, 6), (5, 8)), ((4,), (11,)), ((80,), (70,))]


def results(
    attention: Callable[..., torch.Tensor], plan: AttentionPlan, *, dropping: bool, ranges: bool
) -> list[torch.Tensor]:
    """Output and gradients of query, key and value, in float64."""
    generator = torch.Generator().manual_seed(0)
    steps = (1 if plan.last_step else max(plan.queries), max(plan.keys), max(plan.keys))
    parts = [
        torch.randn(len(plan.keys), BATCH, t, 10, generator=generator, dtype=torch.float64, requires_grad=True)
        for t in steps
    ]
    key_ranges = torch.tensor([[[2, t], [0, t - 2], [3, 3], [0, t], [1, 3], [0, 1]] for t in plan.keys])
    rng = DropoutRNG(seed=1, step=2, samples=number_samples([3, 8], range(GHOST)), device=CPU)
    out = attention(*parts, plan, rng if dropping else None, key_ranges if ranges else None)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), parts)]


@pytest.mark.parametrize("block", [1, 2**25])
@pytest.mark.parametrize("dropping, ranges", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("last_step", [False, True])
@pytest.mark.parametrize("queries, keys", SHAPES)
def test_equal_to_the_implementation_for_cpus(monkeypatch, queries, keys, last_step, dropping, ranges, block):
    monkeypatch.setattr(exportable, "BLOCK_ELEMENTS", block)
    rates = tuple(0.3 * (e % 2 == 0) for e in range(len(queries)))
    plan = AttentionPlan(heads=2, queries=queries, keys=keys, rates=rates, last_step=last_step)
    want = results(block_attention, plan, dropping=dropping, ranges=ranges)
    for got, right in zip(results(PORTABLE.attention, plan, dropping=dropping, ranges=ranges), want, strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=1e-12)


def test_a_row_without_keys_is_zero_and_passes_no_gradient():
    plan = AttentionPlan(heads=2, queries=(6,), keys=(6,), rates=(0.0,))
    out, *gradients = results(PORTABLE.attention, plan, dropping=False, ranges=True)
    assert all(bool(x.isfinite().all()) for x in (out, *gradients))
    assert all(float(x[:, 2].abs().max()) == 0 for x in (out, *gradients))  # sample 2 has no real frame


def test_memory_is_bounded_by_blocks(monkeypatch):
    """Backward computes the matrices again instead of keeping them."""
    monkeypatch.setattr(exportable, "BLOCK_ELEMENTS", 2 * 40 * 40)
    plan = AttentionPlan(heads=2, queries=(40,), keys=(40,), rates=(0.0,))
    kept: list[int] = []
    parts = [torch.randn(1, 32, 40, 8, requires_grad=True) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        PORTABLE.attention(*parts, plan)
    assert max(kept, default=0) < 32 * 2 * 40 * 40


@pytest.mark.parametrize("masked", [False, True])
def test_a_whole_model_with_every_dropout(masked):
    """Terms and gradients, with dropout keys from the device's table and from the host."""
    config = replace(MODEL, masked_padding=masked)
    found = []
    for backend, keys in ((ON_CPU, None), (PORTABLE, None), (PORTABLE, DropoutKeys())):
        torch.manual_seed(0)
        model = DMD(config, SIZES, LENGTHS, backend=backend).double()
        objective = Objective(ObjectiveConfig(), config).double()
        parts = [torch.randn(GHOSTS * SAMPLES, LENGTHS[m], SIZES[m], dtype=torch.float64) for m in SIZES]
        labels = torch.arange(GHOSTS * SAMPLES, dtype=torch.float64).view(GHOSTS, SAMPLES)
        if keys is not None:  # a pass that tells the table's call sites
            model(
                *parts,
                DropoutRNG(
                    seed=1, step=1, samples=number_samples(range(GHOSTS), range(SAMPLES)), device=CPU, keys=keys
                ),
            )
        rng = DropoutRNG(seed=1, step=0, samples=number_samples(range(GHOSTS), range(SAMPLES)), device=CPU, keys=keys)
        assert keys is None or keys.known
        terms = objective(model(*parts, rng), labels, torch.ones_like(labels))
        terms["total"].sum().backward()
        found.append({**terms, **{n: p.grad for n, p in [*model.named_parameters(), *objective.named_parameters()]}})
    for other in found[1:]:
        for name, want in found[0].items():
            torch.testing.assert_close(other[name], want, rtol=1e-9, atol=1e-12, msg=name)
