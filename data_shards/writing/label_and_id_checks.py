"""Checks of ids and labels over all shards of a set, as the shards come; for a build and for `dmd index`."""

import logging
from typing import Any

from data_shards.format.shard_rows import ShardRows
from data_shards.label_checks import check_labels
from data_shards.labels import LabelFacts, Labels, Task
from data_shards.writing.duplicate_ids import DuplicateIdCheck, FileOf

_log = logging.getLogger(__name__)


class LabelAndIdChecks:
    """Takes the rows of each shard in the order of the index, and returns their fields of `DatasetInfo`."""

    def __init__(
        self, name: str, labels: Labels | None, *, numbered: bool = False, file_of: FileOf | None = None
    ) -> None:
        """Begin a set.

        Args:
            name: what errors call it.
            labels: what the user says that the labels are; None: they are not checked.
            numbered: whether the ids were given a number.
            file_of: names the file of a sample, where there are many.
        """
        self._name = name
        self._labels = labels
        self._numbered = numbered
        self._ids = DuplicateIdCheck(name, file_of=file_of)
        self._facts: dict[str, LabelFacts] = {}
        self._ignored: dict[str, int] = {}
        self._training_samples = 0

    def add_shard(self, rows: ShardRows, *, where: str, start: int) -> None:
        """Take the rows of a shard; `where` and `start` say where its first sample is.

        Raises:
            ValueError: a duplicate id within a split, sentiments that only some samples have, or a class without a
                name where others have one.
        """
        self._check_class_names(rows, where)
        self._ids.add(rows.ids, split=rows.split, where=where, start=start)
        self._training_samples += len(rows.ids) if rows.split == "train" else 0
        facts = rows.label_facts()
        for split, before in self._facts.items():
            if (before.min is None) != (facts.min is None):
                raise ValueError(f"{self._name}: of {split} and {where} only one has sentiments; give all samples one")
        known = self._facts.get(rows.split)
        self._facts[rows.split] = facts if known is None else known | facts
        for name, count in rows.ignored.items():
            self._ignored[name] = self._ignored.get(name, 0) + count

    def _check_class_names(self, rows: ShardRows, where: str) -> None:
        names = self._labels.class_names if self._labels else ()
        if names and rows.num_classes > len(names):
            number, name = next(pair for pair in zip(rows.classes, rows.ids, strict=True) if pair[0] >= len(names))
            raise ValueError(
                f"{self._name}: {where} sample {name!r} has class {number}, but --class-names has {len(names)} names, "
                f"of classes 0 to {len(names) - 1}: {', '.join(names)}; name every class"
            )

    def finish(self) -> dict[str, Any]:
        """The fields of `DatasetInfo` about labels and ids; logs a warning about odd ones.

        Raises:
            ValueError: ambiguous labels that were not declared, or labels from which nothing can be learned.
        """
        self._ids.finish()
        if self._labels is not None:
            warnings = check_labels(self._facts, self._labels, self._name, training_samples=self._training_samples)
            for warning in warnings:
                _log.warning("warning: %s: %s", self._name, warning)
        labels = self._labels or Labels()
        return {
            "task": self._task(),
            "labels": self._facts,
            "ignored": self._ignored,
            "label_scale": labels.factor,
            "label_offset": labels.offset,
            "class_names": labels.class_names,
            "emotions": labels.emotions,
            "protocol": labels.protocol,
            "ids_numbered": self._numbered,
        }

    def _task(self) -> Task:
        """What the samples are for: those that have a sentiment are for that, whatever else they have."""
        if any(facts.min is not None for facts in self._facts.values()):
            return "regression"
        return "multilabel" if any(facts.emotions for facts in self._facts.values()) else "classes"
