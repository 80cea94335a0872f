"""Block sizes: what Triton takes, and what is left to plain torch."""

import pytest

from dmd.kernels.common.block_sizes import (
    MAX_HEAD,
    MAX_WIDTH,
    attention_sizes,
    head_window,
    padded,
    row_sizes,
    slot,
)
from dmd.kernels.encoder.plan import StackPlan


@pytest.mark.parametrize("half", [False, True])
def test_blocks_are_powers_of_two_that_hold_the_channels(half):
    for channels in range(1, max(MAX_WIDTH, MAX_HEAD) + 1):
        for sizes in (
            row_sizes("weight_shares", channels, half=half),
            row_sizes("project", channels, half=half),
            attention_sizes(channels, 1, 500, heads=1, half=half),
            attention_sizes(channels, 50, 50, heads=1, half=half),
            attention_sizes(channels, 1, 50, heads=1, half=half),
        ):
            assert sizes["WIDTH"] == padded(channels) >= sizes.get("PACK", 1) * channels
            for name in ("WIDTH", "M", "CHUNK", "BLOCK_M", "BLOCK_N"):
                size = sizes.get(name, 16)
                assert size >= 16
                assert size & (size - 1) == 0


@pytest.mark.parametrize("heads", [1, 2, 5, 10])
@pytest.mark.parametrize("pack", [1, 2])
def test_a_tile_has_its_heads_and_the_padding_behind_the_last_one(heads, pack):
    for head in range(1, MAX_HEAD + 1):
        width, align = head_window(head, heads=heads, pack=pack)
        assert width in (padded(pack * head), 2 * padded(pack * head))
        for first in range(0, heads, pack):
            begin = first * head // align * align
            end = slot(heads * head) if first + pack >= heads else (first + pack) * head
            assert begin <= first * head
            assert end <= begin + width
    assert {head_window(head, heads=10, pack=1) for head in (5, 10, 16)} == {(16, 8)}


def tile(head: int, rows: int, keys: int, heads: int, *, half: bool = True) -> tuple[int, ...]:
    """Heads, rows, keys and warps of a tile."""
    sizes = attention_sizes(head, rows, keys, heads=heads, half=half)
    return tuple(sizes[name] for name in ("PACK", "BLOCK_M", "BLOCK_N", "num_warps"))


def test_tiles_are_no_larger_than_the_sequences():
    assert tile(5, 20, 500, 10)[1:3] == (32, 64)
    assert tile(5, 500, 1, 10)[1:3] == (64, 16)


def test_short_sequences_have_small_tiles_with_a_warp_each():
    assert tile(10, 46, 64, 10) == (1, 16, 16, 1)
    assert tile(10, 46, 65, 10) == (1, 64, 64, 4)


def test_heads_too_wide_for_a_warp_have_none_of_them():
    assert tile(64, 46, 46, 1) == (1, 16, 16, 1)
    assert tile(65, 46, 46, 1) == (1, 32, 32, 4)
    assert tile(32, 46, 46, 1, half=False) == (1, 16, 16, 1)
    assert tile(33, 46, 46, 1, half=False) == (1, 32, 32, 4)


@pytest.mark.parametrize("head, heads, pack", [(5, 10, 2), (8, 2, 2), (9, 2, 1), (5, 5, 1)])
def test_two_heads_share_a_tile_where_its_channels_hold_them_and_none_is_left_over(head, heads, pack):
    assert tile(head, 46, 46, heads) == (pack, 16 * pack, 16, pack)


def test_the_last_steps_of_two_heads_fill_one_small_tile():
    assert tile(5, 1, 50, 10) == (2, 16, 16, 1)


@pytest.mark.parametrize(
    "dim, heads, whole, attends", [(256, 1, True, True), (320, 2, False, True), (320, 1, False, False)]
)
def test_what_is_too_wide_runs_in_plain_torch(dim, heads, whole, attends):
    from dmd.kernels.triton_backend import TRITON, holds_heads, holds_stack

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
    assert holds_heads(dim, heads) is attends
