"""Rows in memory: slots of whole 16 bytes, how many elements they have at most, tensors of torch as rows."""

import pytest
import torch

from dmd.kernels.common.rows import MOST_ELEMENTS, PassTooLarge, empty_rows, padded_rows, row_channels

LIKE = torch.empty(3, 2**20, device="meta")
"""Three encoders and a million samples, without memory."""


def test_rows_are_counted_within_an_encoder():
    most = MOST_ELEMENTS // 2**20 // 8 * 8
    assert empty_rows(LIKE, 1, most).shape == (3, 2**20, 1, most)
    with pytest.raises(
        PassTooLarge,
        match=f"1048576 samples of 2 steps at once are {2**21 * most} elements of a tensor, and the Triton kernels "
        "count 2147483647; lower train.ghost_batches_per_forward, or leave it at auto",
    ):
        empty_rows(LIKE, 2, most)


def test_slots_of_a_row_begin_at_16_bytes():
    slots = empty_rows(torch.empty(2, 3), 5, 3 * 56, torch.bfloat16).split(56, dim=-1)
    assert [row_channels(x) for x in slots] == [3 * 56] * 3
    assert [x.data_ptr() % 16 for x in slots] == [0] * 3


@pytest.mark.parametrize("dim, channels", [(5, 8), (50, 56), (64, 64)])
@pytest.mark.parametrize("steps", [1, 4])
def test_tensors_of_torch_become_rows_with_zeros_past_their_channels(dim, channels, steps):
    x = torch.randn(2, 1, 7, dim)[:, :, -steps:]
    rows = padded_rows(x)
    assert row_channels(rows) == channels
    assert rows[..., :dim].equal(x)
    assert not rows[..., dim:].any()


def test_an_expanded_gradient_becomes_rows():
    rows = padded_rows(torch.ones(()).expand(2, 3, 4, 16))
    assert row_channels(rows) == 16
    assert bool((rows == 1).all())


def test_rows_with_gaps_are_none():
    with pytest.raises(AssertionError):
        row_channels(torch.empty(2, 3, 5, 16)[:, :, ::2])
