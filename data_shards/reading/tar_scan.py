"""The samples of one tar in the order in which they lie there, through WebDataset's iterators.

Each byte is read once, from start to end, so the tar may come from a network. WebDataset's iterators alone would lose
samples: where a header is damaged, tarfile ends as if the archive did (`TarFile.next`), and `tar_file_iterator` with
it, without an error. So a scan is told which samples have to come, and its caller misses those that do not.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from tarfile import TarError
from typing import Any, BinaryIO

from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator


def scan_samples(file: BinaryIO, keys: Sequence[str], suffixes: set[str]) -> Iterator[dict[str, Any]]:
    """Those samples of a tar that have certain keys, as `{"__key__": key, suffix: bytes}`, and only some members.

    The tar may end early, and then samples, or members of the last one, are missing.

    Args:
        keys: in the order of the tar. A key that occurs several times in the tar is given as often.
        suffixes: of the members that are read.

    Raises:
        ValueError, OSError: what reading the file raises.
    """
    source = _Source(file)
    wanted = set(keys)

    def is_wanted(name: str) -> bool:
        key, suffix = base_plus_ext(name)
        return key in wanted and suffix in suffixes

    with suppress(ValueError):  # a sample has a member twice
        yield from group_by_keys(_members(source, is_wanted, len(keys) * len(suffixes)), lcase=False)
    if source.error is not None:
        raise source.error


def _members(source: "_Source", is_wanted: Callable[[str], bool], count: int) -> Iterator[dict[str, Any]]:
    """At most `count` members as `group_by_keys` takes them, up to where the tar can be read."""
    members = tar_file_iterator(source, skip_meta=None, select_files=is_wanted)
    try:
        for member in islice(members, count):
            yield {**member, "__url__": ""}
    except (TarError, ValueError, OSError):
        return


class _Source:
    """A file, and the error that reading it raised: `tar_file_iterator` appends to the arguments of errors."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: Exception | None = None

    def read(self, size: int) -> bytes:
        """The next bytes."""
        try:
            return self._file.read(size)
        except (ValueError, OSError) as error:
            self.error = copy.copy(error)
            raise
