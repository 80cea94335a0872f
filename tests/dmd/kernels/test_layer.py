"""The plain form of a whole encoder layer: its gradient, and that the size of its chunks changes nothing."""

import pytest
import torch

from dmd.kernels.attention.plan import AttentionPlan
from dmd.kernels.dropout.noise import Noise
from dmd.kernels.encoder import cpu_layer as layer_plain
from dmd.kernels.encoder.cpu_layer import plain_layer
from dmd.kernels.encoder.cpu_layer_chunk import Masks, Weights

DIM, HEADS, BATCH, QUERIES, KEYS = 4, 2, 4, (3, 2), (2, 4)


def make(cross: bool, last_step: bool, masked: bool = True):
    """A layer with every dropout as a function of its inputs and weights, and those, in float64.

    Args:
        masked: drop residual branches and hidden units as well as attention weights.
    """
    generator = torch.Generator().manual_seed(0)
    keys = KEYS if cross else QUERIES
    plan = AttentionPlan(heads=HEADS, queries=QUERIES, keys=keys, rates=(0.3, 0.0), last_step=last_step)
    shapes = ((12, 4), (12,), (4, 4), (4,), (16, 4), (16,), (4, 16), (4,))
    draw = {"generator": generator, "dtype": torch.float64}
    parts = [torch.randn(2, BATCH, max(QUERIES), DIM, **draw)]
    parts += [torch.randn(2, BATCH, max(keys), DIM, **draw)] if cross else []
    parts += [torch.randn(2, *shape, **draw) for shape in shapes]
    steps = 1 if last_step else max(QUERIES)
    masks = Masks(*(torch.rand(2, BATCH, steps, width, **draw).round() * 2 for width in (DIM, 4 * DIM, DIM)))
    masks = masks if masked else Masks(None, None, None)
    last = torch.tensor([[2, 1, 0, 2], [1, 0, 1, 1]]) if last_step else None  # of each sample, inside QUERIES

    def run(x, *rest):
        noise = Noise(seed=1, step=2, ghosts=[3, 8], ghost_size=BATCH // 2, device=torch.device("cpu"))
        source, weights = (rest[0], rest[1:]) if cross else (None, rest)
        factors = Masks(*(None if mask is None else mask.to(weights[0].dtype) for mask in masks))
        return plain_layer(x, source, last, Weights(*weights), plan, noise, noise.next_site(), None, factors)

    return run, [part.requires_grad_() for part in parts]


@pytest.mark.parametrize("cross, last_step", [(True, False), (False, False), (False, True)])
def test_gradient(cross, last_step):
    run, parts = make(cross, last_step)
    assert torch.autograd.gradcheck(run, parts, fast_mode=True)


@pytest.mark.parametrize("steps", [1, 6, 10**6])
def test_the_size_of_chunks_changes_nothing(monkeypatch, steps):
    run, parts = make(True, False)
    want = run(*parts)
    monkeypatch.setattr(layer_plain, "CHUNK_STEPS", steps)
    assert torch.allclose(run(*parts), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [True, False])
def test_under_autocast_it_runs_in_float32(masked):
    run, parts = make(False, False, masked)
    parts = [part.detach().float().requires_grad_() for part in parts]
    want = run(*parts)
    with torch.autocast("cpu", torch.bfloat16):
        x = parts[0].detach().bfloat16().requires_grad_()
        got = run(x, *parts[1:])
    assert got.dtype == torch.float32
    assert torch.equal(got, run(x.float(), *parts[1:]))
    assert torch.allclose(got, want, rtol=0, atol=0.1)
    got.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert all(bool(part.grad.isfinite().all()) for part in parts[1:])
