"""Kernels compile for cards that are not there, and fit their shared memory; launches are bound as for them.

In processes of their own, since Triton decides about its interpreter when kernels are defined.
"""

import os
import subprocess
import sys

import pytest

STACK = """
import torch
from benchmarks.offline_driver import offline
from dmd.model.transformer import TransformerStack

def run(capability, dim, heads, *, half, last, limit=None):
    stack = TransformerStack(dim, heads, 1, queries=(46, 50), keys=(46, 50), attn_dropout=[0.3, 0.0], relu_dropout=0.1,
                             res_dropout=0.1, embed_dropout=0.0, last_step=last, fused=True)
    x = [torch.randn(16, steps, dim) for steps in (46, 50)]
    with offline(capability, cached=False, limit=limit) as driver:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outs = stack(x, x)
        sum(out.sum() for out in outs).backward()
    return driver
"""


def run(code: str) -> None:
    """Run code after `STACK`, with Triton's compiler in the place of its interpreter."""
    command = [sys.executable, "-W", "ignore", "-c", STACK + code]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("last", [False, True])
def test_a_preset_compiles_for_hopper_without_spills(last):
    run(f"""
driver = run(90, 50, 10, half=True, last={last})
kernels = driver.kernels.values()
assert {{"residual_mlp", "mlp_weights", "projection_weights"}} < {{kernel.name for kernel in kernels}}
assert max(kernel.shared for kernel in kernels) <= driver.limit
assert max(kernel.spills for kernel in kernels) == 0, [(kernel.name, kernel.spills) for kernel in kernels]
assert "wgmma" in " ".join(kernel.matrix for kernel in kernels)
assert driver.launches
for launch in driver.launches:
    x, y, z = launch.grid
    assert 0 < x < 2**31 and 0 < y <= 65535 and 0 < z <= 65535, launch
    assert any(isinstance(argument, torch.Tensor) for argument in launch.arguments)
    assert all(argument.device.type == "cpu" for argument in launch.arguments if isinstance(argument, torch.Tensor))
""")


@pytest.mark.parametrize("dim, heads, half", [(256, 8, True), (256, 8, False)])
def test_wide_encoders_fit_the_least_card(dim, heads, half):
    """99 KiB of shared memory for a block: RTX 3090, RTX 4090 and RTX 5090."""
    run(f"""
driver = run(86, {dim}, {heads}, half={half}, last=False)
assert driver.limit == 99 * 1024
assert max(kernel.shared for kernel in driver.kernels.values()) <= driver.limit
""")


def test_a_kernel_that_does_not_fit_names_itself_the_card_and_the_bound():
    run("""
from dmd.kernels.backend import KernelError, why_not_fused
reason = why_not_fused(lambda: run(86, 50, 10, half=True, last=False, limit=20 * 1024), asked_for=False)
assert "cannot run on" in reason, reason
assert "bytes of shared memory, and 20480 is the most" in reason, reason
try:
    why_not_fused(lambda: run(86, 50, 10, half=True, last=False, limit=20 * 1024), asked_for=True)
    raise AssertionError("no error")
except ValueError as error:
    assert "set train.kernels=auto" in str(error)
""")


def test_a_large_batch_does_not_pass_the_limits_of_a_grid():
    """8,192 samples of ten heads are more than a grid's second axis holds."""
    run("""
from dmd.kernels.attention import AttentionPlan, attention
plan = AttentionPlan(heads=10, queries=(3,), keys=(3,), rates=(0.0,), fused=True)
parts = [torch.zeros(1, 8192, 3, 50, requires_grad=True) for _ in range(3)]
with offline(86) as driver:
    attention(*parts, plan, None).sum().backward()
assert [launch.grid for launch in driver.launches] == [(81920, 1, 1)] * 3, [launch.grid for launch in driver.launches]
""")
