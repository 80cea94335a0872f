"""Every field of a sample survives a copy: walks the dataclass, so that a field that is added cannot be forgotten.

The copy that selection trains on is in `tests/cluster/test_selection.py`.
"""

from collections.abc import Iterator
from dataclasses import MISSING, fields

import numpy as np
import pytest

from data_shards.format.schema import Sample
from data_shards.labels import Labels
from data_shards.writing.declared_source import DeclaredSource

GIVEN = Sample(
    id="clip",
    split="train",
    label=0.5,
    raw_text="words",
    text=np.ones((2, 3), np.float32),
    audio=np.full((2, 4), 2, np.float32),
    vision=np.full((2, 5), 3, np.float32),
    lengths=(2, 1, 2),
    class_label=4,
    emotions=np.array([0, 1, 1], np.uint8),
)


class One:
    """A source of one sample."""

    name = "one"

    def counts(self) -> dict[str, int]:
        return {"train": 1}

    def read(self, split: str, start: int, stop: int) -> Iterator[Sample]:
        yield GIVEN


def test_no_field_has_its_default():
    """Else its loss would not show."""
    for field in fields(Sample):
        assert field.default is MISSING or not np.array_equal(getattr(GIVEN, field.name), field.default), field.name


@pytest.mark.parametrize(
    "labels, ids, changed",
    [
        (Labels(), "keep", set()),
        (Labels(), "number", {"id"}),
        (Labels(scale=3.0), "keep", {"label"}),
    ],
)
def test_what_is_declared_changes_and_nothing_else(labels, ids, changed):
    (copy,) = DeclaredSource(One(), labels, ids, where="one").read("train", 0, 1)
    differing = {f.name for f in fields(Sample) if not np.array_equal(getattr(GIVEN, f.name), getattr(copy, f.name))}
    assert differing == changed
