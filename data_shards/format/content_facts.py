"""What the samples of a shard, or of all shards of a set, have in common: shapes, token ids, classes, statistics."""

from dataclasses import dataclass, field
from typing import Any

from data_shards.format.feature_statistics import Moments, merge_moments
from data_shards.format.schema import MODALITIES


@dataclass
class ContentFacts:
    """Facts of one shard, or of a set as far as its shards were merged."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Array shape per modality; empty before the first sample."""
    tokens: bool = False
    """Whether text is tokens [3, T]."""
    vocab_size: int = 0
    """1 + the largest token id; 0 for text features."""
    num_classes: int | None = None
    """1 + the largest class label; 0 where samples have none, None before the first shard."""
    num_emotions: int | None = None
    """How many emotions a sample has or has not; 0 where samples have none, None before the first shard."""
    rounding: dict[str, float] = field(default_factory=dict)
    """Per modality the largest difference between a value and its float16; empty where nothing was rounded."""
    moments: dict[str, Moments] = field(default_factory=dict)
    """Per modality of features, the statistics of the train split."""

    def require_same_shapes(self, other: "ContentFacts", *, split: str, name: str) -> None:
        """Compare shapes with those of a shard, whose shapes are taken where there are none yet.

        Args:
            split: of the shard.
            name: what errors call the set.

        Raises:
            ValueError: a shape differs, or tokens meet features.
        """
        if not self.shapes:
            self.shapes = dict(other.shapes)
            self.tokens = other.tokens
        for modality, shape in other.shapes.items():
            if (shape, other.tokens) != (self.shapes[modality], self.tokens):
                raise ValueError(
                    f"{name}: {modality} of {split} samples has shape {shape}, of others {self.shapes[modality]}; "
                    "give all splits the same steps and features"
                )

    def widen_shapes(self, shapes: dict[str, tuple[int, ...]], *, tokens: bool, where: str) -> None:
        """Enlarge the steps of each modality to those of other samples; the number of features must agree.

        Raises:
            ValueError: the number of features differs, or tokens meet features; `where` is what it calls the samples.
        """
        if not self.shapes:
            self.shapes = dict(shapes)
            self.tokens = tokens
        for modality, shape in shapes.items():
            step_axis = 1 if modality == "text" and tokens else 0
            known = self.shapes[modality]
            if tokens != self.tokens or shape[1 - step_axis] != known[1 - step_axis]:
                raise ValueError(f"{where}: {modality} has shape {shape}, which does not go with {known} elsewhere")
            steps = max(shape[step_axis], known[step_axis])
            self.shapes[modality] = (3, steps) if step_axis else (steps, shape[1])

    def merge(self, other: "ContentFacts", *, split: str, num_classes: int, num_emotions: int) -> None:
        """Add the facts of a shard, but for its shapes.

        Raises:
            ValueError: only one of both has class labels, or they differ in their number of emotions.
        """
        if self.num_emotions is not None and self.num_emotions != num_emotions:
            raise ValueError(
                f"samples of {split} have {num_emotions} emotions and others {self.num_emotions}; give all the same"
            )
        self.num_emotions = num_emotions
        if self.num_classes is not None and (self.num_classes == 0) != (num_classes == 0):
            raise ValueError(f"some samples of {split} have a class label and others have none; give all one")
        self.num_classes = max(self.num_classes or 0, num_classes)
        self.vocab_size = max(self.vocab_size, other.vocab_size)
        for modality, error in other.rounding.items():
            self.rounding[modality] = max(error, self.rounding.get(modality, 0.0))
        merge_moments(self.moments, other.moments)

    def as_fields(self) -> dict[str, Any]:
        """The fields of `DatasetInfo` that follow from shapes and token ids."""
        dims = {}
        lengths = {}
        for modality in MODALITIES:
            shape = self.shapes[modality]
            tokens = modality == "text" and self.tokens
            dims[modality] = 0 if tokens else shape[1]
            lengths[modality] = shape[1] if tokens else shape[0]
        return {
            "text_kind": "tokens" if self.tokens else "features",
            "dims": dims,
            "lengths": lengths,
            "vocab_size": self.vocab_size,
        }
