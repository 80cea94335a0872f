"""The files of a result at a directory or a URL: listed, read whole, and written whole or not at all.

    folder = open_folder("s3://bucket/predictions")
    folder.write("part-000000.parquet", content)

They are small: each is in memory once. Shards have `data_shards.storage.store`.
"""

import re
from pathlib import Path
from typing import Protocol

from data_shards.durable import as_unreadable, replace_file
from data_shards.places import PlaceLike, to_place
from data_shards.storage.remote import Remote, RemoteOptions

_STAGED = re.compile(r"\..+-[0-9a-f]{32}")
"""Names that `data_shards.durable.replace_file` gives to files that are not whole yet."""


class Folder(Protocol):
    """The files right under one place; names that begin with a dot are not among them."""

    @property
    def place(self) -> str:
        """What messages call it."""

    def names(self) -> list[str]:
        """The names of all files; none where the place is not there yet. Raises Unreadable."""

    def read(self, name: str) -> bytes:
        """A whole file. Raises ValueError where there is none, Unreadable where it cannot be read."""

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file; whoever reads it sees all of the old content or of the new one. Raises OSError."""

    def remove(self, name: str) -> None:
        """Delete a file. Raises OSError."""

    def clear_staged(self) -> None:
        """Delete what killed writers have left; to be called before others write."""


def open_folder(given: PlaceLike, *, remote: RemoteOptions | None = None) -> Folder:
    """The folder at a place; nothing is made yet.

    Raises:
        ValueError: a file, or a server that cannot be written to.
    """
    place = to_place(given)
    if not place.is_url:
        if place.path.exists() and not place.path.is_dir():
            raise ValueError(f"{place} is a file; give a directory")
        return LocalFolder(place.path)
    if place.address.startswith(("http://", "https://")):
        raise ValueError(f"{place} cannot be written to; give a directory or a bucket")
    return RemoteFolder(Remote(place.address, remote))


class LocalFolder:
    """A directory. `write` does not make it: on a node that does not see the shared one that would hide the mistake."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(root)

    def names(self) -> list[str]:
        """The names of all files."""
        with as_unreadable(self.root):
            found = [path.name for path in self.root.iterdir()] if self.root.is_dir() else []
        return sorted(name for name in found if not name.startswith("."))

    def read(self, name: str) -> bytes:
        """A whole file."""
        path = self.root / name
        try:
            with as_unreadable(path):
                return path.read_bytes()
        except OSError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise ValueError(f"{path} is not there") from error
            raise

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file."""
        replace_file(self.root / name, content)

    def remove(self, name: str) -> None:
        """Delete a file."""
        (self.root / name).unlink()

    def clear_staged(self) -> None:
        """Delete what killed writers have left."""
        for path in self.root.iterdir():
            if _STAGED.fullmatch(path.name):
                path.unlink(missing_ok=True)


class RemoteFolder:
    """A prefix of a bucket: every file is one PUT. Picklable; each process opens its own connections."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self.place = remote.redacted_url

    def names(self) -> list[str]:
        """The names of all files."""
        return [name for name in self._remote.names() if not name.startswith(".")]

    def read(self, name: str) -> bytes:
        """A whole file."""
        return self._remote.read(name, 0, self._remote.size(name))

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a file."""
        self._remote.write(name, content)

    def remove(self, name: str) -> None:
        """Delete a file."""
        self._remote.remove(name)

    def clear_staged(self) -> None:
        """Nothing: what was not stored whole was not stored."""
