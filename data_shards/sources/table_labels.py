"""The columns of a table that labels are read from: a sentiment, a class, or one column per emotion."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from data_shards.labels import Labels
from data_shards.sources.conversions import to_class, to_emotions, to_label

_LABEL, _CLASS = "label", "class"


@dataclass(frozen=True, kw_only=True)
class LabelColumns:
    """Which columns hold what."""

    label: str
    """Of the sentiment or the class; "" where there are emotions alone."""
    class_label: str
    """Of the class beside a sentiment; "" where none is read."""
    declared: Labels

    @classmethod
    def find(
        cls, columns: Collection[str], declared: Labels, *, class_labels: bool, label: str | None = None
    ) -> "LabelColumns":
        """Those that a table has or ought to have.

        Args:
            columns: of the table.
            declared: what the user says of the labels.
            class_labels: whether classes are read beside sentiments.
            label: the column of the sentiment or the class, where the user names it.
        """
        if label is None:
            label = _CLASS if declared.kind != "sentiments" and _CLASS in columns else _LABEL
            if declared.emotions and label not in columns:
                label = ""
        return cls(label=label, class_label=_CLASS if class_labels else "", declared=declared)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (*filter(None, (self.label, self.class_label)), *self.declared.emotions)

    def read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a sample that its row gives.

        Raises:
            ValueError: a label that is no number and no name of a class, an emotion that is missing or negative.
        """
        found: dict[str, Any] = {"label": math.nan}
        if self.label:
            found["label"] = to_label(row[self.label], self.declared.label_names, self.label)
        if self.class_label:
            found["class_label"] = to_class(row[self.class_label], self.declared.class_names, self.class_label)
        if names := self.declared.emotions:
            found["emotions"] = to_emotions([row[name] for name in names], names, "emotion")
        return found
