"""A source with the user's declaration of labels and ids: what labels mean, and whether ids get a number."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from data_shards.format.schema import Sample
from data_shards.labels import Labels
from data_shards.writing.duplicate_ids import numbered_id
from data_shards.writing.source import Source

Ids = Literal["keep", "number"]


class DeclaredSource:
    """Another source's samples (`data_shards.writing.source.Source`) with labels and ids as declared."""

    def __init__(self, source: Source, labels: Labels, ids: Ids, *, where: str) -> None:
        """Wrap a source; `where` is what errors call it."""
        self._source = source
        self._labels = labels
        self._ids = ids
        self._where = where

    @property
    def name(self) -> str:
        """The data set's name."""
        return self._source.name

    def counts(self) -> dict[str, int]:
        """Samples per split."""
        return self._source.counts()

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of a split."""
        for number, sample in enumerate(self._source.read(split, start, stop), start=start):
            name = numbered_id(sample.id, split, number) if self._ids == "number" else sample.id
            try:
                label, class_number = self._read_label(sample)
            except ValueError as error:
                raise ValueError(f"{self._where}: {split} sample {name!r}: {error}") from error
            if class_number is None:
                class_number = sample.class_label
            yield replace(sample, id=name, label=label, class_label=class_number)

    def _read_label(self, sample: Sample) -> tuple[float, int | None]:
        """Sentiment and class number as declared; who has emotions or a class label needs no sentiment."""
        has_other = sample.emotions is not None or sample.class_label is not None
        if has_other and math.isnan(sample.label):
            return math.nan, None
        return self._labels.read(sample.label)
