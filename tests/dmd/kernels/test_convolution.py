"""The temporal convolution: padding stays exactly zero, whatever form a device runs."""

import pytest
import torch

from dmd.kernels.backend import float32_products
from dmd.model.convolution import TemporalConvolution, windowed_product
from tests.dmd.kernels.forms import error, on_cuda

BATCH, STEPS, FEATURES, CHANNELS, PADDED = 6, 50, 74, 50, 20
LARGE = 1e11
"""What gradients of padded steps grow to in a DMD of published size, after layer norms of zeros."""


def padded_input() -> torch.Tensor:
    """[B, T, features] in float64, padded in front."""
    x = torch.randn(BATCH, STEPS, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x[:, :PADDED] = 0
    return x


def check_padding(device: str, kind: torch.dtype, window: int, allowed: float) -> None:
    """Outputs of windows of padding are zero, and their gradients, however large, do not reach the weight."""
    convolution, x = TemporalConvolution(FEATURES, CHANNELS, window).double(), padded_input()
    out = convolution(x)
    upstream = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    empty = PADDED - window + 1
    upstream[:, :empty] *= LARGE
    (want,) = torch.autograd.grad((out[:, empty:] * upstream[:, empty:]).sum(), convolution.weight)

    there = convolution.to(device, kind)
    got = there(x.to(device, kind))
    assert not bool(got[:, :empty].any())
    (gradient,) = torch.autograd.grad((got * upstream.to(device, kind)).sum(), there.weight)
    assert error(got, out) < allowed
    assert error(gradient, want) < allowed


def test_a_product_of_windows_is_the_convolution():
    for window in (1, 3, 5):
        convolution, x = TemporalConvolution(FEATURES, CHANNELS, window).double(), padded_input().requires_grad_()
        results = []
        for out in (convolution(x), windowed_product(x, convolution.weight)):
            assert out.shape == (BATCH, STEPS - window + 1, CHANNELS)
            results.append((out, *torch.autograd.grad(out.square().sum(), (x, convolution.weight))))
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want)


def test_a_product_of_windows_runs_in_the_precision_of_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert windowed_product(padded_input().float(), torch.randn(4, FEATURES, 3)).dtype is torch.bfloat16


@pytest.mark.parametrize("window", [1, 3, 5])
def test_padding_stays_zero(window):
    check_padding("cpu", torch.float32, window, 1e-5)


@pytest.mark.parametrize(
    "kind, tf32, allowed", [(torch.float32, False, 1e-5), (torch.float32, True, 2e-3), (torch.bfloat16, False, 2e-2)]
)
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.gpu
@on_cuda
def test_padding_stays_zero_on_cuda(kind, tf32, allowed, window):
    with float32_products(tf32=tf32):
        check_padding("cuda", kind, window, allowed)
