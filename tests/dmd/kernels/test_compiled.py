"""Kernels of stacks compile for cards that are not there, by the ptxas that Triton brings, and fit their shared memory.

A small part of what `benchmarks.compile_kernels` compiles. The driver refuses what does not fit, as the card's would.
"""

from typing import Any

import pytest
import torch

from dmd.kernels.backend import why_not_fused
from dmd.kernels.common.block_sizes import LEAST_SHARED_MEMORY
from dmd.kernels.encoder.plan import StackPlan
from dmd.model.transformer import TransformerStack
from tests.dmd.kernels.without_card import without_card


def run_stack(capability: int, *, dim: int, heads: int, half: bool, last: bool, limit: int | None = None) -> Any:
    """Launch a stack forward and backward; gives the driver."""
    from benchmarks.offline_driver import offline
    from dmd.kernels.triton_backend import TRITON

    plan = StackPlan(
        dim=dim,
        heads=heads,
        levels=1,
        queries=(46, 50),
        keys=(46, 50),
        attn_rates=(0.3, 0.0),
        relu_rate=0.1,
        res_rate=0.1,
        embed_rate=0.0,
        last_step=last,
    )
    stack = TransformerStack(plan, TRITON)
    x = [torch.zeros(16, steps, dim) for steps in (46, 50)]
    with offline(capability, cached=False, limit=limit) as driver:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            outs = stack(x, x)
        sum(out.sum() for out in outs).backward()
    return driver


def check_preset_on_hopper(last: bool) -> None:
    """A preset's kernels fit, spill nothing and use Hopper's matrix instructions."""
    driver = run_stack(90, dim=50, heads=10, half=True, last=last)
    kernels = driver.kernels.values()
    assert {"residual_mlp", "residual_mlp_backward", "weight_shares"} < {kernel.name for kernel in kernels}
    assert max(kernel.shared for kernel in kernels) <= driver.limit
    assert max(kernel.spills for kernel in kernels) == 0, [(kernel.name, kernel.spills) for kernel in kernels]
    assert "wgmma" in " ".join(kernel.matrix for kernel in kernels)


def check_least_card(half: bool) -> None:
    """256 channels fit 99 KiB of shared memory for a block: RTX 3090, RTX 4090 and RTX 5090."""
    driver = run_stack(86, dim=256, heads=8, half=half, last=False)
    assert driver.limit == LEAST_SHARED_MEMORY
    assert max(kernel.shared for kernel in driver.kernels.values()) <= driver.limit


def check_too_small_card() -> None:
    """A kernel that does not fit names itself, the card and the bound; what was asked for is an error."""

    def attempt() -> None:
        run_stack(86, dim=50, heads=10, half=True, last=False, limit=20 * 1024)

    reason = why_not_fused(attempt, asked_for=False)
    assert reason is not None
    assert "cannot run on" in reason
    assert "bytes of shared memory, and 20480 is the most" in reason
    with pytest.raises(ValueError, match=r"set train\.kernels=auto"):
        why_not_fused(attempt, asked_for=True)


@pytest.mark.parametrize("last", [False, True])
def test_a_preset_compiles_for_hopper_without_spills(last):
    without_card(__name__, "check_preset_on_hopper", last)


@pytest.mark.parametrize("half", [True, False])
def test_wide_encoders_fit_the_least_card(half):
    without_card(__name__, "check_least_card", half)


def test_a_kernel_that_does_not_fit_names_itself_the_card_and_the_bound():
    without_card(__name__, "check_too_small_card")
