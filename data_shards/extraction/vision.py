"""Features of a face, frame by frame: MediaPipe's face landmarker as it follows the face through a video."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.extraction.alignment import Track
from data_shards.extraction.libraries import load
from data_shards.extraction.media import Frame, FrameCount
from data_shards.extraction.settings import VisionFeatures

BLENDSHAPES = 52
LANDMARKS = 478
POSE = 6
VISION_DIMS: dict[VisionFeatures, int] = {
    "mediapipe-blendshapes": BLENDSHAPES + POSE,
    "mediapipe-landmarks": 3 * LANDMARKS + POSE,
}
_MILLISECONDS = 1000
_CENTIMETRES = 100


class _Row(NamedTuple):
    step: int
    features: NDArray[np.float32] | None
    """[D]; None: no face."""


def vision_track(
    frames: Iterable[Frame],
    count: FrameCount,
    *,
    rate: float,
    kind: VisionFeatures,
    model: Path,
) -> Track:
    """Features of the face in frames that `media.read_frames` gives at `rate` steps per second; of several faces, of
    the one that is found first. Steps before the first frame have no face.

    Args:
        count: what `read_frames` counts.
        model: face_landmarker.task.

    Raises:
        ClipError: the frames cannot be decoded.
        ValueError: MediaPipe is not installed, or does not take the model.
    """
    rows = [row for frame in _with_faces(frames, rate, kind, model) for row in frame]
    steps = rows[-1].step + 1 if rows else 0
    features = np.zeros((steps, VISION_DIMS[kind]), dtype=np.float32)
    usable = np.zeros(steps, dtype=np.bool_)
    for step, found in rows:
        if found is not None:
            features[step], usable[step] = found, True
    centres = (np.arange(steps, dtype=np.float64) + 0.5) / rate
    return Track(features, centres, count.stop, usable)


def _with_faces(
    frames: Iterable[Frame],
    rate: float,
    kind: VisionFeatures,
    model: Path,
) -> Iterable[list[_Row]]:
    """One row per step at which each frame is shown."""
    mediapipe: Any = load("mediapipe")
    with _landmarker(model, blendshapes=kind == "mediapipe-blendshapes") as landmarker:
        for frame in frames:
            image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=frame.pixels)
            moment = round((frame.steps.start + 0.5) / rate * _MILLISECONDS)
            result = landmarker.detect_for_video(image, moment)
            height, width = frame.pixels.shape[:2]
            found = _features(result, kind, width / height) if result.face_landmarks else None
            yield [_Row(step, found) for step in frame.steps]


def _landmarker(model: Path, *, blendshapes: bool) -> Any:
    """A landmarker for one video, which has to be closed: MediaPipe fails where the interpreter's end does it."""
    tasks: Any = load("mediapipe.tasks.python")
    vision: Any = load("mediapipe.tasks.python.vision")
    options = vision.FaceLandmarkerOptions(
        base_options=tasks.BaseOptions(model_asset_path=str(model)),
        running_mode=vision.RunningMode.VIDEO,
        num_faces=1,
        output_face_blendshapes=blendshapes,
        output_facial_transformation_matrixes=True,
    )
    try:
        return vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"MediaPipe does not take the face model {model} ({reason:.200}); fetch face_landmarker.task again"
        ) from error


def _features(result: Any, kind: VisionFeatures, aspect: float) -> NDArray[np.float32]:
    """Features [D] of the first face; `aspect` is width by height of the picture."""
    pose = _pose(np.asarray(result.facial_transformation_matrixes[0], dtype=np.float64))
    if kind == "mediapipe-blendshapes":
        face = np.array([shape.score for shape in result.face_blendshapes[0]], dtype=np.float64)
    else:
        points = np.array([(p.x, p.y / aspect, p.z) for p in result.face_landmarks[0]], dtype=np.float64)
        face = _normalised(points).ravel()
    return np.concatenate([face, pose]).astype(np.float32)


def _normalised(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Landmarks [478, 3] about their centre, their root mean square distance from it being 1."""
    centred = points - points.mean(axis=0)
    return centred / np.sqrt((centred**2).sum(axis=1).mean())


def _pose(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pitch, yaw and roll in radians, and the position x, y, z in metres, of a transformation [4, 4] in centimetres.

    MediaPipe's camera looks along -z with y upwards; rotations about x, y and z are applied in the order z, y, x.
    """
    pitch = math.atan2(-matrix[1, 2], matrix[2, 2])
    yaw = math.atan2(matrix[0, 2], math.hypot(matrix[0, 0], matrix[0, 1]))
    roll = math.atan2(-matrix[0, 1], matrix[0, 0])
    return np.array([pitch, yaw, roll, *(matrix[:3, 3] / _CENTIMETRES)])
