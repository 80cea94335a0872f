"""The optimizer by device; DeepSpeed's fused Adam makes torch's steps."""

import pytest
import torch

from launch.engine import make_adam
from tests.dmd.kernels.test_whole_fused import make_system


def test_torch_adam_on_the_cpu():
    system, config = make_system("plain", "cpu")
    assert type(make_adam(system, config, torch.device("cpu"))) is torch.optim.Adam


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_adam_is_adam():
    sides = []
    for kind in ("cpu", "cuda"):
        system, config = make_system("plain", "cpu")
        system.to(kind)
        optimizer = make_adam(system, config, torch.device(kind))
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            for parameter in system.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(kind)
            optimizer.step()
        sides.append([parameter.detach().cpu() for parameter in system.parameters()])
    for got, want in zip(*sides, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
