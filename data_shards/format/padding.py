"""Padding: a sample's features, filled up to the steps that all samples of a set have."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pad_steps(array: NDArray[Any], steps: int) -> NDArray[Any]:
    """[T, D] with zero rows appended up to `steps`."""
    padded = np.zeros((steps, *array.shape[1:]), dtype=array.dtype)
    padded[: len(array)] = array
    return padded
