"""Read a feature pickle that nobody vouches for: numpy arrays, scalars and builtin containers, and nothing else.

No function of the pickle's choice is ever called. Arrays are rebuilt here from their raw bytes with a dtype that this
module made itself, so a crafted array or dtype state cannot reach numpy's C code either. Python 2 pickles (latin1
strings) and the module paths of numpy 1.x and 2.x are understood.
"""

import io
import math
import mmap
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_shards.pickle_scan import scan

_KINDS = "biufcSU"
_FAILURES = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


def load(path: str | Path) -> Any:
    """The object in a pickle file; `ValueError` names a forbidden global, or says that the file is damaged."""
    if not os.path.isfile(path) or os.path.getsize(path) == 0:
        raise ValueError(f"{path} is empty or no file; give a feature pickle")
    with open(path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            scan(view, str(path))
        return _load(file, str(path))


def loads(data: bytes, *, name: str = "pickle") -> Any:
    """The same for bytes in memory."""
    scan(data, name)
    return _load(io.BytesIO(data), name)


def _load(file: BinaryIO, name: str) -> Any:
    try:
        return _Unpickler(file, encoding="latin1").load()
    except _Forbidden as error:
        raise ValueError(f"{name}: {error}") from error
    except _FAILURES as error:
        raise ValueError(f"{name} is damaged or not a feature pickle: {str(error) or type(error).__name__}") from error


class _Forbidden(Exception):
    """The pickle asks for something that is not data."""


class _Rebuilder:
    """Stands for an admitted global: callable by the pickle, and without any attribute that it could change."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise _Forbidden("the pickle tries to change a function")

    def __setattr__(self, name: str, value: object) -> None:
        raise _Forbidden("the pickle tries to change a function")


class _Dtype:
    """A pickled dtype: numbers, booleans, fixed-width strings, or `object` (a list of admitted things)."""

    def __init__(self, spec: object, align: object = False, copy: object = False) -> None:
        if not isinstance(spec, str) or len(spec) > 16:
            raise _Forbidden(f"the pickle holds an array of dtype {spec!r}; only plain numbers and strings are read")
        dtype: np.dtype[Any] = np.dtype(spec)
        if dtype.kind not in _KINDS and dtype.kind != "O":
            raise _Forbidden(f"the pickle holds an array of dtype {spec!r}; only plain numbers and strings are read")
        self.dtype = dtype

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {order!r}")
        if self.dtype.kind in "SU" and (width := state[5]) not in (-1, self.dtype.itemsize):
            raise ValueError(f"string width {width!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray[Any, Any]):
    """An array under reconstruction; its state is checked here before numpy sees it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, stub, fortran, raw = state[-4:]
        if not isinstance(stub, _Dtype) or not _is_shape(shape):
            raise ValueError("malformed array state")
        if isinstance(raw, str):  # Python 2 bytes, read as latin1
            raw = raw.encode("latin1")
        count = math.prod(shape)
        if stub.dtype.kind == "O":
            sound = isinstance(raw, list) and len(raw) == count
        else:
            sound = isinstance(raw, bytes) and len(raw) == count * stub.dtype.itemsize
        if not sound:
            raise ValueError(f"array of shape {shape} without its {count} values")
        checked: Any = (1, shape, stub.dtype, bool(fortran), raw)
        super().__setstate__(checked)


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return np.ndarray.__new__(_Array, (0,), np.dtype("b"))


def _scalar(stub: _Dtype, raw: bytes | str = b"") -> Any:
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(stub, _Dtype) or stub.dtype.kind == "O" or len(data) != stub.dtype.itemsize:
        raise ValueError("malformed numpy scalar")
    return np.frombuffer(data, stub.dtype)[0]


def _frombuffer(raw: bytes, stub: _Dtype, shape: object, order: object) -> Any:
    if not isinstance(stub, _Dtype) or stub.dtype.kind == "O" or not _is_shape(shape) or order not in ("C", "F"):
        raise ValueError("malformed array buffer")
    return np.frombuffer(raw, stub.dtype).reshape(shape, order=order)


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("malformed byte string")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Old protocols spell `b""` as a call of `bytes` without arguments."""
    return b""


def _no_ndarray(*args: object) -> Any:
    raise _Forbidden("the pickle calls numpy.ndarray; only saved arrays are read")


_ADMITTED: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytes": _no_bytes,
    "builtins.frozenset": frozenset,
    "builtins.set": set,
    "numpy.dtype": _Dtype,
    "numpy.multiarray._reconstruct": _reconstruct,
    "numpy.multiarray.scalar": _scalar,
    "numpy.ndarray": _no_ndarray,
    "numpy.numeric._frombuffer": _frombuffer,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        plain = "builtins" if module == "__builtin__" else module.replace("numpy._core.", "numpy.core.")
        function = _ADMITTED.get(f"{plain.replace('numpy.core.', 'numpy.')}.{name}")
        if function is None:
            raise _Forbidden(f"the pickle asks for {module}.{name}, which is not data; save plain numpy arrays instead")
        return _Rebuilder(function)

    def persistent_load(self, pid: object) -> Any:
        raise _Forbidden("the pickle refers to objects outside itself; save plain numpy arrays instead")
