"""Float32 means float32 in every test of the kernels, on a GPU too."""

from collections.abc import Iterator

import pytest

from dmd.kernels.backend import float32_products


@pytest.fixture(autouse=True)
def _ieee_products() -> Iterator[None]:
    """torch lets convolutions run in TF32 by default, 3e-4 off; tests on CUDA allow 1e-5."""
    with float32_products(tf32=False):
        yield
