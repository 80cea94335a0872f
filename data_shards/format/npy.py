"""The header of a `.npy` member, written here so that shards are bitwise identical under every version of numpy."""

from typing import Any

import numpy as np

_MAGIC = b"\x93NUMPY\x01\x00"
_ALIGN = 64


def header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """The bytes before a C-ordered array's data: format 1.0, padded to a multiple of 64."""
    facts = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}".encode("latin1")
    padding = -(len(_MAGIC) + 2 + len(facts) + 1) % _ALIGN
    return _MAGIC + (len(facts) + padding + 1).to_bytes(2, "little") + facts + b" " * padding + b"\n"
