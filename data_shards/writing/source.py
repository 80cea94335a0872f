"""The interface of a source: what a build of shards calls."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from data_shards.format.schema import Sample


class Source(Protocol):
    """Samples of one data set, readable in any order, so that several processes can each write their own shards.

    For tasks on other hosts it is pickled: as the paths of its files and what is known of them, not as their content.
    """

    @property
    def name(self) -> str:
        """The data set's name."""

    def counts(self) -> dict[str, int]:
        """Samples per split, for the splits that exist; `ValueError` where the data cannot be read as samples."""

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split, one at a time; the source holds none of them."""


@runtime_checkable
class IdentifiedSource(Source, Protocol):
    """A source of features whose ids are known before any is read, so that labels can be joined with them."""

    nonfinite: dict[str, int]
    """Non-finite values per split and modality."""
    ignored: dict[str, int]
    """What is in its files and in no sample -> how many entries it has."""
    has_splits: bool
    """Whether it says which split its samples are of; else all are read as one."""

    def ids(self, split: str) -> Sequence[str]:
        """The id of each sample of a split."""

    def memory(self) -> int:
        """Bytes that reading takes at most."""
