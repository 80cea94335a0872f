"""One shard's part of an index, as whoever writes or scans the shard collects it."""

import math
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from data_shards.format.content_facts import ContentFacts
from data_shards.format.feature_statistics import Moments
from data_shards.format.schema import Sample
from data_shards.labels import LabelFacts


@dataclass
class ShardRows:
    """One shard's part of the index: lists with one entry per sample, and what is known of the whole shard."""

    split: str
    keys: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    offsets: list[list[int]] = field(default_factory=list)
    """Where each member's content starts in the tar, in the order of MEMBERS."""
    sizes: list[list[int]] = field(default_factory=list)
    crc32: list[list[int]] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    lengths: list[tuple[int, int, int]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    """Class labels; empty where the set has none."""
    bytes: int = 0
    sha256: str = ""
    facts: ContentFacts = field(default_factory=ContentFacts)
    ignored: dict[str, int] = field(default_factory=dict)
    """Members of an externally created tar that were not read -> how many there are."""

    def add_class_label(self, sample: Sample) -> None:
        """Note the class label of the next sample; either all samples of a set have one, or none."""
        if sample.class_label is not None:
            self.classes.append(sample.class_label)
        if self.classes and len(self.classes) != len(self.ids):
            raise ValueError(f"{sample.split} sample {sample.id!r} has no class label, but others have one")
        if math.isnan(sample.label) != math.isnan(self.labels[0]):
            raise ValueError(f"{sample.split} sample {sample.id!r}: some samples have a sentiment and others have none")

    @property
    def num_classes(self) -> int:
        """1 + the largest class label; 0 where samples have none."""
        return max(self.classes, default=-1) + 1

    def label_facts(self) -> LabelFacts:
        """What the labels are."""
        return LabelFacts.of(self.labels, self.classes)

    def add_statistics(self, modality: str, frames: NDArray[Any]) -> None:
        """Add the stored features of a sample to the statistics, which cover the train split alone."""
        if self.split == "train":
            self.facts.moments.setdefault(modality, Moments()).add(frames)
