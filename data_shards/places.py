"""Where a set of shards is: a directory or a URL, one type for every command, whose text holds no secret.

place = to_place("s3://bucket/mosi")    # or "shards", "file:///data/shards", Path("shards")
f"{place}"                              # for messages, logs and records: without user-info and query
place.address                           # in full, to open it
"""

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path

_UNESCAPED_USER = r"[^\s/?#:\[\]]*:(?!\d*(?:[\s/?#\"'<>]|$))[^\s\"'<>]*@"
"""User-info with a password that holds what should have been escaped, such as a slash. Behind a host stands a port."""
_URL = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^\s/?#]*@|{_UNESCAPED_USER})?"
    r"(?P<rest>[^\s?#\"'<>]*)(?:[?#][^\s\"'<>]*)?"
)
_SCHEMES_WITH_NAME_BEFORE_AT = frozenset({"abfs", "abfss", "az", "git", "github", "wasb", "wasbs"})
"""Schemes whose part before an @ belongs to the place and is no user: container@account, organisation:repo@."""
_LOST_SLASH = re.compile(r"(https?|s3|gs|gcs|abfss?|az|ftp|sftp|hdfs):/(?!/)")


@dataclass(frozen=True)
class Place:
    """A directory or a URL. As text it is redacted."""

    address: str
    """In full: may hold a password or a signed query."""

    def __post_init__(self) -> None:
        if not self.address.strip():
            raise ValueError("a place is empty; give a directory, or a URL such as s3://bucket/mosi")
        if _LOST_SLASH.match(self.address) and not os.path.exists(self.address):
            meant = redact(self.address.replace(":/", "://", 1))
            raise ValueError(f"the place {meant} was given with one slash after its scheme; write two")

    @property
    def is_url(self) -> bool:
        """Whether files must be fetched; `file://` names a directory."""
        return "://" in self.address and not self.address.startswith("file://")

    @property
    def path(self) -> Path:
        """The directory or file; only of what is no URL."""
        assert not self.is_url
        return Path(self.address.removeprefix("file://"))

    @property
    def has_secret(self) -> bool:
        """Whether the text leaves out user-info or a query."""
        return redact(self.address) != self.address

    def is_dir(self) -> bool:
        """Whether this is a directory that is there, or a URL, which stands for one."""
        return self.is_url or self.path.is_dir()

    def absolute(self) -> "Place":
        """The same place for a process that works elsewhere."""
        return self if self.is_url else Place(str(self.path.absolute()))

    def __str__(self) -> str:
        return redact(self.address) if self.is_url else str(self.path)

    def __repr__(self) -> str:
        return f"Place({str(self)!r})"


PlaceLike = str | Path | Place
"""What functions of the library accept as a place."""


def to_place(given: PlaceLike) -> Place:
    """The place that a text or a path names.

    Raises:
        ValueError: an empty text, or a URL whose second slash was lost.
    """
    return given if isinstance(given, Place) else Place(str(given))


def place_option(text: str) -> Place:
    """The place that an option names, for `argparse`."""
    try:
        return to_place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def redact(text: str) -> str:
    """A text without the user-info and the query of every URL in it."""
    return _URL.sub(_shown, text) if "://" in text else text


def _shown(match: re.Match[str]) -> str:
    user = match["user"] or ""
    name = user if match["scheme"].lower() in _SCHEMES_WITH_NAME_BEFORE_AT else ""
    return f"{match['scheme']}://{name}{match['rest']}"
