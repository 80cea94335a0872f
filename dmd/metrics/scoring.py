"""What the answers of a model mean and by which protocol they are measured.

Modules and shards have sentiments on the scale [-3, 3]. What people read, and what commands write, is in the units of
the source of the labels: `Scoring.in_units` converts, here alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmd.metrics.bins import EDGES, to_bins
from dmd.metrics.classes import SENTIMENT_CLASSES, WORDED_CLASSES, class_names, to_classes
from dmd.metrics.table import Metric, metrics_of
from dmd.model.config import Kind

if TYPE_CHECKING:
    from torch import Tensor

SENTIMENT_LIMIT = 3.0
"""The largest sentiment on the scale of the shards."""
BIN_NAMES = {
    2: ["not positive", "positive"],
    3: ["negative", "neutral", "positive"],
    5: ["negative", "weakly negative", "neutral", "weakly positive", "positive"],
}
"""What the bins of CH-SIMS mean, by their number."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a model's answers are called, converted and measured; the default is that of sentiments in [-3, 3]."""

    kind: Kind = "regression"
    protocol: str = "mosi"
    """A name of `dmd.metrics.table.PROTOCOLS`."""
    outputs: int = 1
    """Numbers that a head gives."""
    scale: float = 1.0
    """The stored sentiment is (sentiment - offset) * scale."""
    offset: float = 0.0
    names: tuple[str, ...] = ()
    """Of the classes or emotions, as the data set has them; empty: they have none."""
    classes_by: str = ""
    """Of a classifier of sentiments the protocol that divides them, `mosi` or `sims`; empty: of class numbers."""

    @property
    def titles(self) -> list[str]:
        """What the classes or emotions are called: by their names, by what they mean of a sentiment, or by numbers."""
        if self.names or self.kind == "regression":
            return list(self.names)
        if self.classes_by:
            return BIN_NAMES[self.outputs] if self.classes_by == "sims" else self._class_titles(self.outputs)
        return [str(number) for number in range(self.outputs)]

    @property
    def column_names(self) -> list[str]:
        """What columns of classes or emotions are called: by their names, or by numbers."""
        return list(self.names) or [str(number) for number in range(self.outputs)]

    @property
    def label_width(self) -> int:
        """Numbers that a sample's label has."""
        return self.outputs if self.kind == "multilabel" else 1

    def rows(self) -> list[Metric]:
        """The metrics, in the order of tables."""
        return metrics_of(self.protocol, self.kind, self.titles)

    def in_units(self, stored: Tensor) -> Tensor:
        """Sentiments of the shards' scale in the units of the source, float64; as they are where both are the same, and
        where answers are no sentiments."""
        if self.kind != "regression" or self.has_units_of_shards:
            return stored
        return self._in_source_units(stored)

    def _in_source_units(self, stored: Tensor) -> Tensor:
        return stored.double() / self.scale + self.offset

    def stored(self, values: Tensor) -> Tensor:
        """Sentiments in the units of the source on the scale [-3, 3], as exact as the shards' float32; as they are
        where both are the same."""
        return values if self.has_units_of_shards else ((values.double() - self.offset) * self.scale).float()

    @property
    def has_units_of_shards(self) -> bool:
        """Whether the source has its sentiments in [-3, 3]."""
        return self.scale == 1 and self.offset == 0

    @property
    def limits(self) -> tuple[float, float]:
        """The range of the sentiments in the units of the source."""
        return self.offset - SENTIMENT_LIMIT / self.scale, self.offset + SENTIMENT_LIMIT / self.scale

    @property
    def fine_classes(self) -> list[str]:
        """Names of the most classes into which the protocol of a regression divides sentiments."""
        return BIN_NAMES[max(EDGES)] if self.protocol == "sims" else self._class_titles(max(SENTIMENT_CLASSES))

    def _class_titles(self, count: int) -> list[str]:
        """What classes of sentiments on the scale of the shards are called: those that are numbers, in the units of the
        source."""
        names = class_names(count)
        if self.has_units_of_shards or count in WORDED_CLASSES:
            return names
        return [f"{int(name) / self.scale + self.offset:.3g}" for name in names]

    def to_fine_classes(self, values: Tensor) -> Tensor:
        """The number of the class, of `fine_classes`, of each sentiment in the units of the source."""
        if self.protocol == "sims":
            return to_bins(values, max(EDGES))
        return to_classes(self.stored(values), max(SENTIMENT_CLASSES))

    def classes_of(self, stored: Tensor) -> Tensor:
        """The class of each sentiment of the shards, of a classifier of sentiments."""
        assert self.classes_by, "the classes are stored"
        if self.classes_by == "sims":
            return to_bins(self._in_source_units(stored), self.outputs)
        return to_classes(stored, self.outputs)

    def describe(self, label: Tensor) -> str:
        """A label in words: a sentiment, a class, or the emotions that a sample has."""
        if self.kind == "regression":
            return f"{float(label):+.1f}"
        if self.kind == "classes":
            return self.titles[int(label)]
        return ", ".join(name for name, has in zip(self.titles, label.tolist(), strict=True) if has) or "none"
