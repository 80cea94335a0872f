"""An encoder layer on the CPU: its gradient, the portable layer's numbers, and any size of chunks."""

import pytest
import torch

from dmd.kernels.cpu import CPU
from dmd.kernels.encoder import cpu_layer
from dmd.kernels.portable import PORTABLE
from tests.dmd.kernels.small_layer import QUERIES, make

CASES = [(True, False), (False, False), (False, True), (True, True)]
"""(to a source, the last step alone)."""


@pytest.mark.parametrize("cross, last_step", CASES)
def test_gradient(cross, last_step):
    run, parts = make(cross=cross, last_step=last_step)
    assert torch.autograd.gradcheck(run, parts, fast_mode=True)


@pytest.mark.parametrize("dropping", [True, False])
@pytest.mark.parametrize("cross, last_step", CASES)
def test_equal_to_the_portable_layer(cross, last_step, dropping):
    """Values and gradients, with the same elements dropped. Steps past an encoder's length are nobody's."""
    found = []
    for backend in (CPU, PORTABLE):
        run, parts = make(cross=cross, last_step=last_step, dropping=dropping, backend=backend)
        out = run(*parts)
        own = torch.cat([out[e, :, : 1 if last_step else steps].flatten() for e, steps in enumerate(QUERIES)])
        found.append([own.detach(), *torch.autograd.grad((own * torch.linspace(-1, 1, len(own))).sum(), parts)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 6, 10**6])
def test_the_size_of_chunks_changes_nothing(monkeypatch, steps):
    run, parts = make(cross=True)
    want = run(*parts)
    monkeypatch.setattr(cpu_layer, "CHUNK_STEPS", steps)
    assert torch.allclose(run(*parts), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dropping", [True, False])
def test_under_autocast_it_runs_in_float32(dropping):
    run, parts = make(dropping=dropping)
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
