"""Read an untrusted feature pickle: numpy arrays, scalars and builtin containers, and nothing else.

No function that the pickle chooses is ever called. Arrays are rebuilt here from their raw bytes with a dtype that this
module made itself, so a crafted array or dtype state cannot reach numpy's C code either. Python 2 pickles (latin1
strings) and the module paths of numpy 1.x and 2.x are understood.

Large arrays are not read into memory: they are read-only views of the file, which is mapped. So a pickle takes the
memory of its small objects. Only protocols 0 to 2 written by Python 3, which store bytes as text, take that of their
arrays.
"""

import mmap
import pickle
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data_shards.file_kinds import HEAD_BYTES, check_file_kind, explain
from data_shards.safe_pickle.numpy_stand_ins import (
    ALLOWED_GLOBALS,
    AllowedGlobal,
    ArrayStandIn,
    DtypeStandIn,
    Forbidden,
    LongTextStandIn,
)
from data_shards.safe_pickle.opcode_scan import scan

_MIN_VIEW_BYTES = 4096
"""Byte strings of at least this size become views of the file."""
_FIRST_WITH_BYTES = b"\x80\x03"
"""How pickles begin whose protocol has bytes. Earlier ones of Python 2 have them too; they count as if they had not."""
_COPIES_OF_TEXT = 4
"""Arrays that are spelled as text are held up to so many times while they are read, measured 3.5."""
_MIN_PAYLOAD_BYTES = 64
_COPIES_OF_PAYLOAD = 4
"""Strings of at least this size take up to so many times their bytes, with what Python and the memo add."""
_COPIES_OF_OBJECTS = 32
"""All else takes up to so many times its bytes in the pickle: a word of three letters is 6 there, and some 190 here."""
_FAILURES = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
)


class Pickle:
    """An open pickle file."""

    def __init__(self, path: str | Path) -> None:
        """Read it; `ValueError` names a forbidden global, or says that the file is damaged."""
        check_file_kind(path, "a feature pickle")
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.value, objects = _load(self._map, str(path))
        self.size = len(self._map)
        """Bytes of the file."""
        spells_bytes = self._map[:2] < _FIRST_WITH_BYTES
        self.memory = _COPIES_OF_TEXT * len(self._map) if spells_bytes else objects
        """Bytes of memory that it takes at most, as long as what is read of its arrays is released."""

    def release(self) -> None:
        """Free the memory that reading arrays took; they stay readable."""
        self._map.madvise(mmap.MADV_DONTNEED)


def loads(data: bytes, *, name: str = "pickle") -> Any:
    """The object in a pickle that is in memory; `ValueError` as for a file."""
    return _load(data, name)[0]


def _load(data: bytes | mmap.mmap, name: str) -> tuple[Any, int]:
    """The object, and the bytes of memory that it takes at most without what are views."""
    try:
        trailing = scan(data, name)
    except ValueError as error:
        if found := explain(bytes(data[:HEAD_BYTES])):
            raise ValueError(f"{name} is no feature pickle: {found}") from error
        raise
    end = len(data) - trailing
    if data[end : end + _MIN_VIEW_BYTES].strip(b"\0\t\r\n "):
        raise ValueError(
            f"{name} goes on for {trailing} bytes after its first pickle: several were written into one file; put all "
            "splits into one dict {split: fields} and write that"
        )
    try:
        reader = _ByteReader(data)
        value = _StandInResolver().resolve(_Unpickler(reader).load())
        small = len(data) - reader.viewed - reader.copied
        return value, _COPIES_OF_PAYLOAD * reader.copied + _COPIES_OF_OBJECTS * small
    except Forbidden as error:
        raise ValueError(f"{name}: {_one_line(error)}") from error
    except _FAILURES as error:
        raise ValueError(f"{name} is damaged or not a feature pickle: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """What an error says, which may quote anything from the pickle."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class _ByteReader:
    """The file that the unpickler reads: small byte strings are copied, large ones are views."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        self._position = 0
        self.viewed = 0
        """Bytes of which only views were given."""
        self.copied = 0
        """Bytes of long strings that were copied."""

    def read(self, size: int) -> Any:
        """The next bytes: a copy, or a memoryview of what is large."""
        start = self._position
        self._position += size
        source = self._data if size < _MIN_VIEW_BYTES else memoryview(self._data)
        if size >= _MIN_VIEW_BYTES:
            self.viewed += size
        elif size >= _MIN_PAYLOAD_BYTES:
            self.copied += size
        return source[start : self._position]

    def readline(self) -> bytes:
        """The next bytes up to the end of a line."""
        start = self._position
        self._position = self._data.find(b"\n", start) + 1
        return self._data[start : self._position]


class _Unpickler(pickle._Unpickler):
    """The standard library's unpickler in Python, which leaves long byte strings in the file."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],
    }

    def __init__(self, source: _ByteReader) -> None:
        super().__init__(source, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        plain = "builtins" if module == "__builtin__" else module.replace("numpy._core.", "numpy.core.")
        function = ALLOWED_GLOBALS.get(f"{plain.replace('numpy.core.', 'numpy.')}.{name}")
        if function is None:
            raise Forbidden(f"the pickle asks for {module}.{name}, which is not data; save plain numpy arrays instead")
        return AllowedGlobal(function)

    def persistent_load(self, pid: object) -> Any:
        raise Forbidden("the pickle refers to objects outside itself; save plain numpy arrays instead")

    def _decode_string(self, value: bytes | memoryview) -> object:
        return LongTextStandIn(value) if isinstance(value, memoryview) else value.decode("latin1")


class _StandInResolver:
    """Replaces stand-ins by numpy's objects, everywhere in what was read; shared parts stay shared."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[object, object]] = {}
        """By id of a container: the container, and what replaces it."""

    def resolve(self, value: object) -> Any:
        """The value without stand-ins."""
        if isinstance(value, ArrayStandIn):
            return self.resolve(value.array) if value.array.dtype.kind == "O" else value.array
        if isinstance(value, memoryview):
            return bytes(value)
        if isinstance(value, DtypeStandIn):
            return value.dtype
        if isinstance(value, LongTextStandIn):
            return str(value.view, "latin1")
        if isinstance(value, AllowedGlobal):
            raise Forbidden("the pickle holds a function instead of data; save plain numpy arrays instead")
        if not isinstance(value, (list, dict, tuple, np.ndarray)):
            if isinstance(value, (set, frozenset)):
                _check_keys(value)
            return value
        if id(value) not in self._done:
            self._done[id(value)] = value, value  # keeps the id in use, and ends the walk of a list that holds itself
            self._done[id(value)] = value, self._resolve_inside(value)
        return self._done[id(value)][1]

    def _resolve_inside(self, value: object) -> object:
        if isinstance(value, tuple):
            return tuple([self.resolve(part) for part in value])
        if isinstance(value, list):
            value[:] = [self.resolve(part) for part in value]
        elif isinstance(value, dict):
            _check_keys(value)
            for key in value:
                value[key] = self.resolve(value[key])
        elif isinstance(value, np.ndarray) and value.dtype.kind == "O":
            flat = value.reshape(-1)
            for i in range(len(flat)):
                flat[i] = self.resolve(flat[i])
            return flat.reshape(value.shape)
        return value


def _check_keys(keys: Iterable[object]) -> None:
    """Reject stand-ins among the keys of a dict and the members of a set."""
    if any(isinstance(key, (ArrayStandIn, DtypeStandIn, LongTextStandIn, AllowedGlobal)) for key in keys):
        raise Forbidden("the pickle uses an array or a function as a key; save plain numpy arrays instead")
