"""Shards for selection: the train and valid samples of a set, copied into a set of their own that has no test split.

Trials are given this directory only, so no code in them can read a test sample, by whatever bug. The copy is made
once per experiment, whole or not at all, and costs the size of the two splits on the experiment's storage.
"""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from data_shards.format.schema import MODALITIES, Sample
from data_shards.reading.index import ShardIndex
from data_shards.reading.reader import ShardReader
from data_shards.writing.build import build

SPLITS = ("train", "valid")
_AT_ONCE = 64


class SelectionSource:
    """The samples of a set of shards without its test split (`data_shards.writing.source.Source`)."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader

    @property
    def name(self) -> str:
        """The data set's name."""
        return self._reader.index.info.name

    def counts(self) -> dict[str, int]:
        """Samples of train and valid."""
        return {split: self._reader.index.num_samples(split) for split in SPLITS}

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        """Samples `start` to `stop` of train or valid."""
        assert split in SPLITS
        for first in range(start, stop, _AT_ONCE):
            positions = range(first, min(first + _AT_ONCE, stop))
            batch = self._reader.read(split, positions)
            columns: dict[str, Any] = {
                "id": self._reader.index.ids(split, positions),
                "split": [split] * len(positions),
                "label": batch["label"].tolist(),
                "raw_text": self._reader.raw_texts(split, positions),
                "lengths": [tuple(lengths) for lengths in batch["lengths"].tolist()],
                "class_label": batch["class"].tolist() if "class" in batch else [None] * len(positions),
                "emotions": batch.get("emotions", [None] * len(positions)),
                **{m: batch[m] for m in MODALITIES},
            }
            if self._reader.index.info.text_kind == "tokens":
                columns["text"] = columns["text"].astype(np.int32)
            assert columns.keys() == {field.name for field in fields(Sample)}, "a copy keeps every field"
            for row in range(len(positions)):
                yield Sample(**{name: column[row] for name, column in columns.items()})


def selection_shards(reader: ShardReader, out: Path) -> Path:
    """The shards without test split in directory `out`, made where they are not there yet.

    Raises:
        ValueError: a damaged sample.
    """
    if not (out / "index.parquet").exists():
        info = reader.index.info
        source = SelectionSource(reader)
        build(source, out, samples_per_shard=info.samples_per_shard, storage=info.dtype, copy_of=info)
    assert not set(ShardIndex.load(out).info.counts) - set(SPLITS)
    return out
