"""One shard's part of an index, as whoever writes or scans the shard collects it."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
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
    emotions: list[NDArray[np.uint8]] = field(default_factory=list)
    """[L] each; empty where the set has none."""
    bytes: int = 0
    sha256: str = ""
    facts: ContentFacts = field(default_factory=ContentFacts)
    ignored: dict[str, int] = field(default_factory=dict)
    """Members of an externally created tar that were not read -> how many there are."""

    def add_labels(self, sample: Sample) -> None:
        """Note the labels of the next sample; all samples of a set have the same kinds of them.

        Raises:
            ValueError: it lacks what others have, or has another number of emotions.
        """
        self.labels.append(sample.label)
        if sample.class_label is not None:
            self.classes.append(sample.class_label)
        if self.classes and len(self.classes) != len(self.labels):
            raise ValueError(f"{sample.split} sample {sample.id!r} has no class label, but others have one")
        if sample.emotions is not None:
            self.emotions.append(sample.emotions)
        if self.emotions and len(self.emotions) != len(self.labels):
            raise ValueError(f"{sample.split} sample {sample.id!r} has no emotions, but others have some")
        if sample.emotions is not None and len(sample.emotions) != self.num_emotions:
            raise ValueError(
                f"{sample.split} sample {sample.id!r} has {len(sample.emotions)} emotions, others {self.num_emotions}; "
                "give each sample a number for every one"
            )
        if math.isnan(sample.label) != math.isnan(self.labels[0]):
            raise ValueError(f"{sample.split} sample {sample.id!r}: some samples have a sentiment and others have none")

    @property
    def num_classes(self) -> int:
        """1 + the largest class label; 0 where samples have none."""
        return max(self.classes, default=-1) + 1

    @property
    def num_emotions(self) -> int:
        """How many emotions a sample has or has not; 0 where samples have none."""
        return len(self.emotions[0]) if self.emotions else 0

    def label_facts(self) -> LabelFacts:
        """What the labels are."""
        return LabelFacts.of(self.labels, self.classes, self.emotions)

    def add_statistics(self, modality: str, frames: NDArray[Any]) -> None:
        """Add the stored features of a sample to the statistics, which cover the train split alone."""
        if self.split == "train":
            self.facts.moments.setdefault(modality, Moments()).add(frames)
