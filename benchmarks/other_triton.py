"""Triton of another Python, as far as its cache is concerned.

Triton names what it has compiled by a hash of its own files, the kernel, its constants and options. With the files of
the wheel that a GPU machine has, what is compiled here is found there.
"""

import os
import zipfile
from pathlib import Path

from triton.runtime import cache

UNPACKED = "VISIT_TRITON"
"""Environment variable: where `unpack` has put the wheel's files."""


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack what the hash is made of."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith("triton/")])


def key_of(folder: Path) -> str:
    """Triton's own hash of the files of an unpacked wheel, instead of those that are installed."""
    own, original = cache.__file__, getattr(cache.triton_key, "__wrapped__", cache.triton_key)
    cache.__file__ = str(folder / "triton" / "runtime" / "cache.py")
    try:
        key: str = original()
    finally:
        cache.__file__ = own
    return key


def pretend() -> None:
    """Compile for the Triton that UNPACKED names, from here on."""
    key = key_of(Path(os.environ[UNPACKED]))
    cache.triton_key = lambda: key
