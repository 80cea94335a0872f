"""Frames become steps: by hand on a few frames."""

import numpy as np
import pytest

from data_shards.extraction.alignment import Track, even_steps, fit, interval_means

FRAMES = np.array([[1, 10], [2, 20], [3, 30], [4, 40]], dtype=np.float32)


def track(*, usable: tuple[bool, ...] = (True,) * 4) -> Track:
    """Frames with centres at 0.05, 0.15, 0.25 and 0.35 s of 0.4 s."""
    features = FRAMES * np.array(usable)[:, None].astype(np.float32)
    return Track(features, (np.arange(4) + 0.5) / 10, 0.4, np.array(usable))


def means(intervals: list[tuple[float, float]], **facts: tuple[bool, ...]) -> list[float]:
    """The first feature."""
    starts, stops = np.array(intervals, dtype=np.float64).T
    found = interval_means(track(**facts), starts, stops)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 1], 10 * found[:, 0])
    return found[:, 0].tolist()


def test_a_word_is_the_mean_of_the_frames_with_their_centres_in_it():
    assert means([(0, 0.2), (0.1, 0.4), (0.05, 0.15), (0, 9)]) == [1.5, 3.0, 1.0, 2.5]


def test_a_word_shorter_than_a_frame_takes_the_nearest():
    assert means([(0.16, 0.18), (0.19, 0.23), (0.0, 0.0), (0.39, 0.4)]) == [2.0, 3.0, 1.0, 4.0]


def test_what_is_outside_the_track_is_zero():
    assert means([(0.4, 0.5), (7, 8), (-2, -1), (-1, 0.1)]) == [0.0, 0.0, 0.0, 1.0]


def test_frames_without_a_face_enter_no_mean():
    usable = (True, False, False, True)
    assert means([(0, 0.2), (0.1, 0.3), (0.1, 0.4)], usable=usable) == [1.0, 0.0, 4.0]


def test_a_track_without_frames_gives_zeros():
    empty = Track(np.zeros((0, 3), np.float32), np.zeros(0), 0.0, np.zeros(0, np.bool_))
    np.testing.assert_array_equal(interval_means(empty, np.zeros(2), np.ones(2)), np.zeros((2, 3)))
    np.testing.assert_array_equal(even_steps(empty, 20), np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [(10, [1, 2, 3, 4]), (5, [1.5, 3.5]), (4, [1.5, 3.5]), (2.5, [2.5]), (20, [1, 1, 2, 2, 3, 3, 4, 4])],
)
def test_even_steps(rate, wanted):
    """At 20 per second every second step has no centre in it and takes the nearest frame."""
    assert even_steps(track(), rate)[:, 0].tolist() == wanted


def test_the_rate_of_the_frames_keeps_every_frame():
    """The edges of steps and the centres of openSMILE's frames are computed differently."""
    count = 1000
    features = np.arange(count, dtype=np.float32)[:, None]
    frames = Track(features, np.arange(count) / 100 + 0.01, count / 100, np.ones(count, np.bool_))
    # a frame's centre is the edge where the next step begins; the first step has no centre in it
    np.testing.assert_array_equal(even_steps(frames, 100)[:, 0], [0, *range(count - 1)])


def test_sequences_are_cut_or_padded_at_their_end():
    assert fit(FRAMES, 2)[:, 0].tolist() == [1, 2]
    assert fit(FRAMES, 5)[:, 0].tolist() == [1, 2, 3, 4, 0]
