"""Instructions are counted in the machine code of kernels, loops by the iterations that a launch gives them."""

import pytest
import torch

from dmd.kernels.attention.plan import AttentionPlan
from tests.dmd.kernels.without_card import without_card

LENGTHS = (20, 150)


def check_counts() -> None:
    """Blocks of 64 keys of attention: an encoder of 20 steps has one, one of 150 steps one, two and three."""
    from benchmarks.instructions import count_launches
    from benchmarks.offline_driver import offline
    from dmd.kernels.triton_backend import TRITON

    plan = AttentionPlan(heads=2, queries=LENGTHS, keys=LENGTHS, rates=(0.0, 0.0))
    x = [torch.zeros(2, 3, max(LENGTHS), 16) for _ in range(3)]
    with offline(90) as driver:
        TRITON.attention(*x, plan)
        with torch.autocast("cpu", torch.bfloat16):
            TRITON.attention(*(part.bfloat16() for part in x), plan)
    single, half = sorted(count_launches(driver.launches), key=lambda row: -row["all_millions"])
    for row in (single, half):
        assert row["kernel"] == "forward"
        assert row["programs"] == 2 * 3 * 3 * 2
        outside, _, rest = row["made_of"].partition(" + ")
        body, _, rest = rest.partition(" x ")
        times, _, loop = rest.partition(" ")
        assert loop.startswith("[for begin in range(")
        assert float(times) == pytest.approx((1 + 0 + 0 + 1 + 2 + 3) / 6, abs=0.005)
        assert int(outside) + int(body) == row["static"] > 100
        assert row["a_warp"] == pytest.approx(int(outside) + int(body) * 7 / 6, abs=1)
        assert 0 < row["us"] < 100
    # Without matrix units a product is many instructions.
    assert single["all_millions"] > 2 * half["all_millions"]


def test_instructions_of_a_launch_are_counted_with_the_iterations_of_its_loop():
    without_card(__name__, "check_counts")
