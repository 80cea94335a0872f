"""Arrays inside members that other programs wrote: `.npy` and `.npz`, never anything that can hold code."""

import io
import json
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.sources.base import pad_steps

UNSAFE = ("pth", "pt", "pkl", "pickle", "pyd", "joblib", "ckpt", "bin")
"""Formats that are, or may be, pickles: reading one can run code."""


def check_format(member: str) -> None:
    """Refuse a member by its extension; `member` is such as `emb.npy` or `feats.npz:audio`."""
    extension = member.partition(":")[0].rsplit(".", 1)[-1].lower()
    if extension in UNSAFE:
        raise ValueError(f"member {member}: .{extension} files can run code when they are read; store .npy or .npz")
    if extension not in ("npy", "npz"):
        raise ValueError(f"member {member}: .{extension} holds no array that is read here; store .npy or .npz")
    if (extension == "npz") != (":" in member):
        raise ValueError(f"member {member}: name the array in an .npz as file.npz:array, and none in an .npy")


def decode_array(raw: bytes, member: str) -> NDArray[Any]:
    """The array in a member's bytes; `ValueError` where there is none, or one of objects."""
    entry = member.partition(":")[2]
    try:
        if not entry:
            return np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
        with zipfile.ZipFile(io.BytesIO(raw)) as archive, archive.open(f"{entry}.npy") as file:
            return np.lib.format.read_array(io.BytesIO(file.read()), allow_pickle=False)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{member} is no array that can be read: {error}") from error


def fit(array: NDArray[Any], shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array as one sample's [T, D] (or tokens [3, T]) of the set: padded with zeros at the end."""
    if array.shape == shape:
        return array.astype(dtype, copy=False)
    if dtype == np.int32:
        return pad_steps(array.T, shape[1]).T.astype(dtype)
    return pad_steps(array, shape[0]).astype(dtype)


def json_field(raw: bytes, field: str) -> Any:
    """A field of a JSON object, `a.b` being b in a; `ValueError` where it is absent."""
    value = json.loads(raw)
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"the JSON has no {field}")
        value = value[part]
    return value
