"""What all shards of a set say together about ids and labels: checked as they come, for a build and for `dmd index`."""

import logging
from typing import Any

from data_shards.format.tar import ShardRows
from data_shards.labels import LabelFacts, Labels, check_meaning
from data_shards.writing.identity import IdCheck

_log = logging.getLogger(__name__)


class Collector:
    """Takes the rows of each shard in the order of the index, and gives their part of `DatasetInfo`."""

    def __init__(self, name: str, labels: Labels | None, *, numbered: bool = False) -> None:
        """Begin a set.

        Args:
            name: what errors call it.
            labels: what the user says that the labels are; None: they are what they are, nothing is doubted.
            numbered: whether the ids were given a number.
        """
        self._name, self._labels, self._numbered = name, labels, numbered
        self._ids = IdCheck(name)
        self._facts: dict[str, LabelFacts] = {}
        self._ignored: dict[str, int] = {}

    def take(self, rows: ShardRows, *, where: str, start: int) -> None:
        """Take the rows of a shard; `where` and `start` say where its first sample is.

        Raises:
            ValueError: an id that is there twice in a split, or sentiments that only some samples have.
        """
        self._ids.add(rows.ids, split=rows.split, where=where, start=start)
        facts = rows.label_facts()
        for split, before in self._facts.items():
            if (before.min is None) != (facts.min is None):
                raise ValueError(f"{self._name}: of {split} and {where} only one has sentiments; give all samples one")
        held = self._facts.get(rows.split)
        self._facts[rows.split] = facts if held is None else held | facts
        for name, count in rows.ignored.items():
            self._ignored[name] = self._ignored.get(name, 0) + count

    def finish(self) -> dict[str, Any]:
        """The fields of `DatasetInfo` that follow; what is doubtful is warned of.

        Raises:
            ValueError: labels that were not declared and are doubtful, or from which nothing can be learned.
        """
        self._ids.finish()
        if self._labels is not None:
            for warning in check_meaning(self._facts, self._labels, self._name):
                _log.warning("warning: %s: %s", self._name, warning)
        regression = any(facts.min is not None for facts in self._facts.values())
        return {
            "task": "regression" if regression else "classes",
            "labels": self._facts,
            "ignored": self._ignored,
            "label_scale": self._labels.factor if self._labels else 1.0,
            "ids_numbered": self._numbered,
        }
