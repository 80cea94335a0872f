"""Stand-ins for numpy's objects while an untrusted pickle is read: see `data_shards.safe_pickle.load`."""

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

_SPEC = re.compile(r"[<>=|]?[?biufcSUO]\d{0,9}")
"""Numbers, booleans, strings of fixed width and objects; numpy's own parser takes whole expressions."""


class Forbidden(Exception):
    """The pickle asks for something that is not data."""


class AllowedGlobal:
    """Stands for an allowed global: the pickle can call it, and cannot change any attribute."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        raise Forbidden("the pickle tries to change a function")

    def __setattr__(self, name: str, value: object) -> None:
        raise Forbidden("the pickle tries to change a function")


class LongTextStandIn:
    """A Python 2 string that is a view of the file: an array's bytes, or a long latin1 text."""

    def __init__(self, view: memoryview) -> None:
        self.view = view


class DtypeStandIn:
    """A pickled dtype: numbers, booleans, fixed-width strings, or `object` (a list of allowed values)."""

    def __init__(self, spec: object, align: object = False, copy: object = False) -> None:
        if not isinstance(spec, str) or not _SPEC.fullmatch(spec):
            raise Forbidden(f"the pickle holds an array of dtype {spec!r}; only plain numbers and strings are read")
        self.dtype: np.dtype[Any] = np.dtype(spec)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise ValueError(f"byte order {order!r}")
        if self.dtype.kind in "SU" and (width := state[5]) not in (-1, self.dtype.itemsize):
            raise ValueError(f"string width {width!r}")
        self.dtype = self.dtype.newbyteorder(order)


class ArrayStandIn:
    """Stands for an array until its state has been read."""

    def __init__(self, *args: object) -> None:
        self.array: np.ndarray[Any, Any] = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, stub, fortran, raw = state[-4:]
        self.array = _rebuild(raw, stub, shape, "F" if fortran else "C")


def _rebuild(raw: object, stub: object, shape: object, order: object) -> np.ndarray[Any, Any]:
    """Make an array, from exactly as many bytes, or objects, as its shape needs. All arrays are made here."""
    is_shape = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not isinstance(stub, DtypeStandIn) or not is_shape or order not in ("C", "F"):
        raise ValueError("malformed array state")
    assert isinstance(shape, tuple)
    count = math.prod(shape)
    data = _to_bytes(raw)
    if stub.dtype.kind == "O":
        if not isinstance(data, list) or len(data) != count:
            raise ValueError(f"array of shape {shape} without its {count} values")
        array = np.empty(count, dtype=object)
        array[:] = data
    elif not isinstance(data, (bytes, memoryview)) or len(data) != count * stub.dtype.itemsize:
        raise ValueError(f"array of shape {shape} without its {count} values")
    else:
        array = np.frombuffer(data, stub.dtype) if count else np.empty(0, stub.dtype)
    return array.reshape(shape, order="F" if order == "F" else "C")


def _to_bytes(raw: object) -> object:
    if isinstance(raw, str):  # Python 2 bytes, read as latin1
        return raw.encode("latin1")
    return raw.view if isinstance(raw, LongTextStandIn) else raw


def _scalar(stub: object, raw: object = b"") -> Any:
    if isinstance(stub, DtypeStandIn) and stub.dtype.kind == "O":
        raise ValueError("malformed numpy scalar")
    return _rebuild(raw, stub, (1,), "C")[0]


def _frombuffer(raw: object, stub: object, shape: object, order: object) -> Any:
    return _rebuild(raw, stub, shape, order)


def _encode(text: object, encoding: object = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("malformed byte string")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Old protocols spell `b""` as a call of `bytes` without arguments."""
    return b""


def _to_dict(*args: Any) -> dict[Any, Any]:
    """An OrderedDict, which old protocols give its pairs as a list."""
    return dict(*args)


def _to_plain_dict(*factory: object) -> dict[Any, Any]:
    """A defaultdict, without what it would make for a key that is not there."""
    if len(factory) > 1:
        raise ValueError("malformed defaultdict")
    return {}


def _no_factory(*args: object) -> Any:
    raise Forbidden("the pickle calls a builtin type; save plain numpy arrays instead")


def _no_ndarray(*args: object) -> Any:
    raise Forbidden("the pickle calls numpy.ndarray; only saved arrays are read")


ALLOWED_GLOBALS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytes": _no_bytes,
    "builtins.frozenset": frozenset,
    "builtins.set": set,
    "collections.OrderedDict": _to_dict,
    "collections.defaultdict": _to_plain_dict,
    **dict.fromkeys((f"builtins.{name}" for name in ("dict", "list", "int", "float", "str", "tuple")), _no_factory),
    "numpy.dtype": DtypeStandIn,
    "numpy.multiarray._reconstruct": ArrayStandIn,
    "numpy.multiarray.scalar": _scalar,
    "numpy.ndarray": _no_ndarray,
    "numpy.numeric._frombuffer": _frombuffer,
}
