"""What a CUDA device does at best, measured: a large copy and a large product."""

import torch


def rates(device: torch.device) -> tuple[float, float]:
    """Bytes (read and written) and bfloat16 operations per second."""
    from triton.testing import do_bench

    source = torch.randn(2**28, device=device)
    target = torch.empty_like(source)
    copied = do_bench(lambda: target.copy_(source), return_mode="median")
    square = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    product = do_bench(lambda: square @ square, return_mode="median")
    return 2 * source.numel() * source.element_size() / copied * 1e3, 2 * 8192**3 / product * 1e3
