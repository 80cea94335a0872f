"""An encoder layer on the CPU: its gradient, the portable layer's numbers, and any size of chunks."""

import pytest
import torch

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.cpu import CPU
from dmd.kernels.dropout.keys import number_samples
from dmd.kernels.dropout.rng import DropoutRNG
from dmd.kernels.encoder import cpu_layer
from dmd.kernels.encoder.plan import LayerPlan, LayerWeights
from dmd.kernels.portable import PORTABLE

DIM, HEADS, BATCH, QUERIES, KEYS = 4, 2, 4, (3, 2), (2, 4)
CASES = [(True, False), (False, False), (False, True), (True, True)]
"""(to a source, the last step alone)."""


def make(cross: bool, last_step: bool, dropping: bool = True, backend=CPU):
    """A layer as a function of its inputs and weights, and those, in float64.

    Args:
        dropping: drop residual branches and hidden units as well as attention weights.
    """
    generator = torch.Generator().manual_seed(0)
    keys = KEYS if cross else QUERIES
    attention = AttentionPlan(heads=HEADS, queries=QUERIES, keys=keys, rates=(0.3, 0.0), last_step=last_step)
    plan = LayerPlan(attention=attention, relu_rate=0.5 * dropping, res_rate=0.5 * dropping)
    shapes = ((12, 4), (12,), (4, 4), (4,), (16, 4), (16,), (4, 16), (4,))
    draw = {"generator": generator, "dtype": torch.float64}
    parts = [torch.randn(2, BATCH, max(QUERIES), DIM, **draw)]
    parts += [torch.randn(2, BATCH, max(keys), DIM, **draw)] if cross else []
    parts += [torch.randn(2, *shape, **draw) for shape in (*shapes, (2, DIM), (2, DIM))]
    last = torch.tensor([[2, 1, 0, 2], [1, 0, 1, 1]]) if last_step else None  # of each sample, inside QUERIES

    def run(x, *rest):
        rng = DropoutRNG(seed=1, step=2, samples=number_samples([3, 8], range(BATCH // 2)), device=torch.device("cpu"))
        source, weights = (rest[0], rest[1:]) if cross else (None, rest)
        own = LayerWeights(*weights)
        return backend.layer(x, source, own, plan, members=torch.arange(2), last=last, rng=rng, key_ranges=None)

    return run, [part.requires_grad_() for part in parts]


@pytest.mark.parametrize("cross, last_step", CASES)
def test_gradient(cross, last_step):
    run, parts = make(cross, last_step)
    assert torch.autograd.gradcheck(run, parts, fast_mode=True)


@pytest.mark.parametrize("dropping", [True, False])
@pytest.mark.parametrize("cross, last_step", CASES)
def test_equal_to_the_portable_layer(cross, last_step, dropping):
    """Values and gradients, with the same elements dropped. Steps past an encoder's length are nobody's."""
    found = []
    for backend in (CPU, PORTABLE):
        run, parts = make(cross, last_step, dropping, backend)
        out = run(*parts)
        own = torch.cat([out[e, :, : 1 if last_step else steps].flatten() for e, steps in enumerate(QUERIES)])
        found.append([own.detach(), *torch.autograd.grad((own * torch.linspace(-1, 1, len(own))).sum(), parts)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 6, 10**6])
def test_the_size_of_chunks_changes_nothing(monkeypatch, steps):
    run, parts = make(True, False)
    want = run(*parts)
    monkeypatch.setattr(cpu_layer, "CHUNK_STEPS", steps)
    assert torch.allclose(run(*parts), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dropping", [True, False])
def test_under_autocast_it_runs_in_float32(dropping):
    run, parts = make(False, False, dropping)
    parts = [part.detach().float().requires_grad_() for part in parts]
    want = run(*parts)
    with torch.autocast("cpu", torch.bfloat16):
        x = parts[0].detach().bfloat16().requires_grad_()
        got = run(x, *parts[1:])
        assert torch.equal(got, run(x.float(), *parts[1:]))
    assert got.dtype == torch.float32
    assert float((got - want).detach().norm()) <= 0.01 * float(want.detach().norm())
    got.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert all(bool(part.grad.isfinite().all()) for part in parts[1:])
