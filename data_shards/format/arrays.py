"""Arrays in members of externally created tars: `.npy` and `.npz`, never a format that can hold code."""

import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.file_kinds import HEAD_BYTES, explain
from data_shards.format.padding import pad_steps

UNSAFE_EXTENSIONS = ("pth", "pt", "pkl", "pickle", "pyd", "joblib", "ckpt", "bin")
"""Formats that are, or may be, pickles: reading one can run code."""
_MAX_UNPACKED_BYTES = 1 << 28
"""Bytes of one unpacked array; an archive can claim any size."""


_FAILURES = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What numpy and zipfile raise on damaged files."""


def check_array_member(member: str) -> None:
    """Reject a member by its extension; `member` is such as `emb.npy` or `feats.npz:audio`."""
    extension = member.partition(":")[0].rsplit(".", 1)[-1].lower()
    if extension in UNSAFE_EXTENSIONS:
        raise ValueError(f"member {member}: .{extension} files can run code when they are read; store .npy or .npz")
    if extension not in ("npy", "npz"):
        raise ValueError(f"member {member}: .{extension} holds no array that is read here; store .npy or .npz")
    if (extension == "npz") != (":" in member):
        raise ValueError(f"member {member}: name the array in an .npz as file.npz:array, and none in an .npy")


def decode_array(raw: bytes, member: str) -> NDArray[Any]:
    """The array in a member's bytes; `ValueError` where there is none, or one of objects."""
    entry = member.partition(":")[2]
    try:
        return _npy(_unzip(raw, f"{entry}.npy") if entry else raw)
    except _FAILURES as error:
        is_expected_format = raw[:4] == b"PK\x03\x04" if entry else raw[:1] == b"\x93"
        reason = "" if is_expected_format else explain(raw[:HEAD_BYTES])
        reason = reason or " ".join(str(error).split())
        raise ValueError(f"{member} is no array that can be read: {reason}") from error


def _npy(raw: bytes) -> NDArray[Any]:
    """The array of a `.npy` file, which must have exactly the bytes that its shape needs."""
    file = io.BytesIO(raw)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"npy format {version}")
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}, not numbers")
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(raw) - file.tell():
        raise ValueError(f"its shape {shape} does not fit its {len(raw)} bytes")
    flat: NDArray[Any] = np.frombuffer(raw, dtype, offset=file.tell()) if math.prod(shape) else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _unzip(raw: bytes, entry: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        info = archive.getinfo(entry)
        if info.file_size > _MAX_UNPACKED_BYTES:
            raise ValueError(f"{entry} claims {info.file_size} bytes")
        return archive.read(info)


def pad_to_shape(array: NDArray[Any], shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array as one sample's [T, D] (or tokens [3, T]) of the set: padded with zeros at the end."""
    if array.shape == shape:
        return array.astype(dtype, copy=False)
    if dtype == np.int32:
        return pad_steps(array.T, shape[1]).T.astype(dtype)
    return pad_steps(array, shape[0]).astype(dtype)


def json_field(raw: bytes, field: str) -> Any:
    """A field of a JSON object, `a.b` being b in a; `ValueError` where it is absent."""
    try:
        value = json.loads(raw)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deep") from error
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"the JSON has no {field}")
        value = value[part]
    return value
