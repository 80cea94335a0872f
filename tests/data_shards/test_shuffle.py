"""The global order: a bijection at every size, local, uniform, and pinned by golden values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.reading.shuffle import epoch_order, epoch_windows

SIZES = {
    "num_samples": st.integers(1, 3000),
    "shard_size": st.integers(1, 4000),
    "window": st.integers(1, 60),
    "seed": st.integers(0, 2**64),
    "epoch": st.integers(0, 10**6),
}


@given(**SIZES)
@settings(max_examples=300, deadline=None)
def test_every_sample_comes_exactly_once(num_samples, **key):
    order = epoch_order(np.arange(num_samples), num_samples=num_samples, **key)
    assert np.array_equal(np.sort(order), np.arange(num_samples))


@given(**SIZES, data=st.data())
@settings(max_examples=100, deadline=None)
def test_any_positions_give_the_same_as_the_whole_epoch(num_samples, data, **key):
    whole = epoch_order(np.arange(num_samples), num_samples=num_samples, **key)
    chosen = np.array(data.draw(st.lists(st.integers(0, num_samples - 1), max_size=20)), dtype=np.int64)
    assert np.array_equal(epoch_order(chosen, num_samples=num_samples, **key), whole[chosen])


@given(**SIZES)
@settings(max_examples=100, deadline=None)
def test_a_window_of_positions_stays_in_a_window_of_shards(num_samples, shard_size, window, **key):
    order = epoch_order(np.arange(num_samples), num_samples=num_samples, shard_size=shard_size, window=window, **key)
    shards = order // shard_size
    windows = epoch_windows(
        np.arange(num_samples), num_samples=num_samples, shard_size=shard_size, window=window, **key
    )
    seen: set[int] = set()
    start = 0
    while start < num_samples:  # each window: exactly `window` new shards, all their samples
        block = shards[start : start + window * shard_size]
        members = list(dict.fromkeys(block.tolist()))[:window]
        count = sum(min(shard_size, num_samples - shard * shard_size) for shard in members)
        assert set(shards[start : start + count].tolist()) == set(members)
        assert not seen & set(members)
        assert set(windows[start : start + count].tolist()) == {len(seen) // window}
        seen |= set(members)
        start += count


def test_golden_values():
    order = epoch_order(np.arange(10), seed=1111, epoch=3, num_samples=10, shard_size=4, window=2)
    assert order.tolist() == [3, 0, 8, 2, 1, 9, 5, 6, 7, 4]
    huge = epoch_order(
        np.array([0, 1, 2, 10**9 + 6]), seed=7, epoch=0, num_samples=10**9 + 7, shard_size=10_000, window=16
    )
    assert huge.tolist() == [919349281, 378006988, 603370464, 650372461]


def test_seed_and_epoch_change_the_order():
    def order(seed, epoch):
        return epoch_order(np.arange(1000), seed=seed, epoch=epoch, num_samples=1000, shard_size=64, window=4).tolist()

    orders = [order(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({tuple(one) for one in orders}) == 16
    assert order(2, 3) == orders[11]


@pytest.mark.parametrize("num_samples, shard_size, window", [(40, 100, 1), (60, 10, 6), (50, 7, 8)])
def test_positions_are_uniform_over_many_epochs(num_samples, shard_size, window):
    """Chi-square of (position, sample) counts: every sample is equally likely at every position."""
    epochs = 2000
    counts = np.zeros((num_samples, num_samples))
    for epoch in range(epochs):
        order = epoch_order(
            np.arange(num_samples),
            seed=5,
            epoch=epoch,
            num_samples=num_samples,
            shard_size=shard_size,
            window=window,
        )
        counts[np.arange(num_samples), order] += 1
    expected = epochs / num_samples
    freedom = (num_samples - 1) ** 2
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("wrong", [{"num_samples": 0}, {"shard_size": 0}, {"window": 0}])
def test_impossible_sizes_are_rejected(wrong):
    key = {"num_samples": 10, "shard_size": 3, "window": 2, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        epoch_order(np.arange(1), seed=0, epoch=0, **key)


@pytest.mark.parametrize("position", [-1, 10])
def test_positions_outside_the_epoch_are_rejected(position):
    with pytest.raises(ValueError, match="outside the 10 samples"):
        epoch_order(np.array([position]), seed=0, epoch=0, num_samples=10, shard_size=3, window=2)


def test_a_rank_touches_few_shards_at_scale():
    """10^8 samples in 10^4 shards, 8 ranks, 160 samples per step: a rank's 1,000 steps stay within few windows."""
    ghosts = np.arange(1000)[:, None] * 160 + np.array([3, 131])[:, None, None] * 1000 * 160
    positions = (ghosts[..., None] + np.arange(16)).reshape(2, -1)  # the first ghost batch of each step
    for window in (1, 4, 16):
        for start in range(2):
            order = epoch_order(positions[start], seed=1, epoch=0, num_samples=10**8, shard_size=10**4, window=window)
            windows = -(-160_000 // (window * 10**4)) + 1
            assert len(np.unique(order // 10**4)) <= windows * window


def test_a_look_up_costs_the_same_everywhere():
    """A billion samples: positions at both ends, without anything of that size in memory."""
    ends = np.array([0, 10**9 - 1])
    order = epoch_order(ends, seed=3, epoch=9, num_samples=10**9, shard_size=10**5, window=8)
    assert len(set(order.tolist())) == 2
    assert (order < 10**9).all()
