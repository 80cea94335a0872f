"""Features of a face: what its pose means, seen by pictures that are mirrored, turned, moved and made small."""

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.transform import rotate

from data_shards.extraction.media import Frame, FrameCount
from data_shards.extraction.preparation import find_face_model
from data_shards.extraction.vision import BLENDSHAPES, vision_track
from tests.support.clips import picture

PITCH, YAW, ROLL, X, Y, Z = range(6)


def pose(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[6], of a single picture."""
    frame = Frame(range(1), np.ascontiguousarray(pixels))
    model = find_face_model(None)
    track = vision_track([frame], FrameCount(), rate=5, kind="mediapipe-blendshapes", model=model)
    assert track.usable.all()
    return track.features[0, BLENDSHAPES:]


def padded(left: int, right: int, top: int, bottom: int) -> NDArray[np.uint8]:
    return np.pad(picture(0.3), ((top, bottom), (left, right), (0, 0)), mode="edge")


@pytest.fixture(scope="module")
def upright() -> NDArray[np.float32]:
    return pose(picture(0.3))


def test_a_mirrored_face_has_the_opposite_roll_and_place(upright):
    mirrored = pose(picture(0.3)[:, ::-1])
    assert abs(upright[ROLL]) > 0.03
    assert abs(upright[X]) > 0.01
    assert mirrored[[ROLL, X]] == pytest.approx(-upright[[ROLL, X]], abs=0.02)
    assert mirrored[[PITCH, Y, Z]] == pytest.approx(upright[[PITCH, Y, Z]], abs=0.03)


def test_roll_is_counterclockwise(upright):
    turned = (255 * rotate(picture(0.3), 20, mode="edge")).astype(np.uint8)
    assert pose(turned)[ROLL] - upright[ROLL] == pytest.approx(np.deg2rad(20), abs=0.05)


def test_a_face_half_as_large_is_twice_as_far(upright):
    assert upright[Z] < 0
    assert pose(padded(128, 128, 128, 128))[Z] == pytest.approx(2 * upright[Z], rel=0.1)


def test_x_is_to_the_right_and_y_upwards(upright):
    assert pose(padded(100, 0, 0, 0))[X] > upright[X] + 0.03
    assert pose(padded(0, 0, 0, 100))[Y] > upright[Y] + 0.03


def test_steps_before_the_first_frame_have_no_face():
    frame = Frame(range(2, 4), picture(0.3))
    track = vision_track([frame], FrameCount(), rate=5, kind="mediapipe-blendshapes", model=find_face_model(None))
    assert track.usable.tolist() == [False, False, True, True]
    assert not track.features[:2].any()
    assert track.centres.tolist() == pytest.approx([0.1, 0.3, 0.5, 0.7])
