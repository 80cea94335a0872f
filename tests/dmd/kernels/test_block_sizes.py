"""Block sizes: what Triton takes, and what is left to plain torch."""

import pytest

from dmd.kernels.block_sizes import MAX_HEAD, attention_sizes, padded, row_sizes
from dmd.kernels.stack import MAX_WIDTH
from dmd.model.transformer import TransformerStack


@pytest.mark.parametrize("half", [False, True])
def test_blocks_are_powers_of_two_that_hold_the_channels(half):
    for channels in range(1, max(MAX_WIDTH, MAX_HEAD) + 1):
        for sizes in (
            row_sizes("mlp_weights", channels, half=half),
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
    stack = TransformerStack(
        dim,
        heads,
        1,
        queries=(4,),
        keys=(4,),
        attn_dropout=[0.0],
        relu_dropout=0.0,
        res_dropout=0.0,
        embed_dropout=0.0,
        last_step=False,
        fused=True,
    )
    assert (stack.fused_plan is not None) is whole
    assert [plan.fused for plan in stack.plans] == [attends]
