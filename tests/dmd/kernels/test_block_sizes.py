"""Block sizes: what Triton takes, and what is left to plain torch."""

import pytest

from dmd.kernels.common.block_sizes import MAX_HEAD, MAX_WIDTH, attention_sizes, padded, row_sizes
from dmd.kernels.encoder.plan import StackPlan


@pytest.mark.parametrize("half", [False, True])
def test_blocks_are_powers_of_two_that_hold_the_channels(half):
    for channels in range(1, max(MAX_WIDTH, MAX_HEAD) + 1):
        for sizes in (
            row_sizes("weight_shares", channels, half=half),
            row_sizes("project", channels, half=half),
            attention_sizes(channels, 1, 500, half=half),
        ):
            assert sizes["WIDTH"] == padded(channels) >= channels
            for name in ("WIDTH", "M", "CHUNK", "BLOCK_M", "BLOCK_N"):
                size = sizes.get(name, 16)
                assert size >= 16
                assert size & (size - 1) == 0


def test_tiles_are_no_larger_than_the_sequences():
    sizes = attention_sizes(5, 1, 20, half=True)
    assert (sizes["BLOCK_M"], sizes["BLOCK_N"]) == (16, 32)


@pytest.mark.parametrize(
    "dim, heads, whole, attends", [(256, 1, True, True), (320, 2, False, True), (320, 1, False, False)]
)
def test_what_is_too_wide_runs_in_plain_torch(dim, heads, whole, attends):
    from dmd.kernels.triton_backend import TRITON, holds_head, holds_stack

    plan = StackPlan(
        dim=dim,
        heads=heads,
        levels=1,
        queries=(4,),
        keys=(4,),
        attn_rates=(0.0,),
        relu_rate=0.0,
        res_rate=0.0,
        embed_rate=0.0,
        last_step=False,
    )
    assert holds_stack(plan) is whole
    assert ("table" in TRITON.tables(plan)) is whole
    assert holds_head(dim // heads) is attends
