"""The kernels' matrix product: float32 operands are rounded to TF32, not cut off, and stay whole otherwise."""

import torch
import triton
import triton.language as tl

from dmd.kernels.common.triton_products import product
from tests.dmd.kernels.forms import interpreted


@triton.jit
def multiply(a_ptr, b_ptr, out_ptr, PRECISION: tl.constexpr):
    """One tile of 32 x 32."""
    at = tl.arange(0, 32)[:, None] * 32 + tl.arange(0, 32)[None, :]
    tl.store(out_ptr + at, product(tl.load(a_ptr + at), tl.load(b_ptr + at), PRECISION))


def to_nearest_tf32(x: torch.Tensor) -> torch.Tensor:
    """The nearest values with 10 bits of mantissa, by way of float64's rounding."""
    mantissa, exponent = torch.frexp(x.double())
    return torch.ldexp((mantissa * 2**11).round() / 2**11, exponent)


def check_product(device: str) -> None:
    """Against float64 products of rounded operands."""
    a, b = (torch.randn(32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    a[0, 0], a[1, 0] = 1e30, -1e-30
    wanted = {"ieee": a.double() @ b.double(), "tf32": to_nearest_tf32(a) @ to_nearest_tf32(b)}
    for precision, want in wanted.items():
        out = torch.empty(32, 32, device=device)
        multiply[(1,)](a.to(device), b.to(device), out, PRECISION=precision)
        torch.testing.assert_close(out.double().cpu(), want, rtol=1e-5, atol=1e-5)
    assert (wanted["ieee"] - wanted["tf32"])[2:].abs().max() > 1e-4  # or the two were not told apart


def test_product_interpreted():
    interpreted(__name__, "check_product")
