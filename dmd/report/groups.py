"""Which runs are seeds of one config, and what to call a config: by the values in which it differs from the others.

A name is short, so that fifty of them can stand beside each other: numbers of three digits, the ends of paths, and of
many values the first ones, with how many follow. `Group.full` has all of them.

Two runs are seeds of one config if their configs are one (`dmd.report.identity`), and so are the precision that the
network really ran in, and how far the training got: finished, or the epochs that it has done.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dmd.report.ensembles import ensemble_of
from dmd.report.identity import BUDGET, compared_values, differing_keys, short_names, value_text
from dmd.report.inference import SplitResult
from dmd.report.runs import RunRecord

LONGEST_NAME = 56
"""Characters of a config's name; the values that do not fit are counted."""
_DATA = "data"
"""The key of `Group.settings` under which the name of the data set is."""
_DIGITS = 3
"""Significant ones of a number in a name."""
SHOWN = 6
"""Configs that are drawn together in one panel, or stand side by side in a table of samples."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run and what its best checkpoint says on the split of the report."""

    run: RunRecord
    result: SplitResult
    valid: SplitResult | None = None
    """The same on the valid split, on which calibration is fitted; None where that is the split of the report, or the
    shards have none."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed alone."""

    name: str
    members: tuple[Measured, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    """What distinguishes it from the other configs, whole: {key: value}; of each the keys in which any two differ."""

    @property
    def full(self) -> str:
        """Its name with every value, whole."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or self.name

    @property
    def seeds(self) -> str:
        """How many runs it has, in words."""
        return f"{len(self.members)} seeds" if len(self.members) > 1 else "1 seed"

    @cached_property
    def ensemble(self) -> SplitResult:
        """What all its members say together; a single one, what it says."""
        return ensemble_of([member.result for member in self.members])

    @property
    def best_loss(self) -> float:
        """Mean over its members of the best validation loss."""
        return sum(member.run.best()[1] for member in self.members) / len(self.members)

    @property
    def config(self) -> dict[str, dict[str, Any]]:
        """The config of the first of them."""
        return self.members[0].run.config

    @property
    def metrics(self) -> dict[str, float]:
        """The fused head's metrics of the first of them, which have the names of all."""
        return self.members[0].result.metrics["fused"]

    def values(self, metric: str, head: str = "fused") -> list[float]:
        """A metric of every member."""
        return [member.result.metrics[head][metric] for member in self.members]


def compared(run: RunRecord) -> dict[str, Any]:
    """Everything in which seeds of one config are equal, by name."""
    values = compared_values(run.config, run.info.get("dims", {}))
    values["train.precision"] = run.info.get("precision") or values["train.precision"]
    values["data.generation"] = run.info.get("generation")
    if not run.finished:
        values["train.unfinished"] = f"{run.stands.epoch if run.stands is not None else 0} epochs"
    cosine = values["train.schedule"] == "cosine"
    changed = [
        f"{key} was {before} up to step {session['resume_step']}"
        for session in run.sessions
        for key, (before, _) in session.get("changed", {}).items()
        if key in values and key != "text.encoder" and (cosine or key not in BUDGET)
    ]
    return values | ({"train.changed": "; ".join(changed)} if changed else {})


def identity(run: RunRecord) -> str:
    """Equal for seeds of one config."""
    return json.dumps(compared(run), sort_keys=True)


def make_groups(measured: list[Measured]) -> list[Group]:
    """Runs by config, in the order of their first appearance."""
    by_identity: dict[str, list[Measured]] = {}
    for one in measured:
        by_identity.setdefault(identity(one.run), []).append(one)
    bundles = list(by_identity.values())
    settings = _settings([bundle[0].run for bundle in bundles])
    return [
        Group(name=name, members=tuple(bundle), settings=values)
        for name, bundle, values in zip(_names(settings), bundles, settings, strict=True)
    ]


def shown_together(groups: Sequence[Group]) -> list[Group]:
    """At most `SHOWN` configs, in their order: the first one, which is the reference, and those of the lowest
    validation loss."""
    others = sorted(range(1, len(groups)), key=lambda number: groups[number].best_loss)[: SHOWN - 1]
    return [groups[number] for number in sorted({0, *others})]


def of_how_many(shown: Sequence[Group], groups: Sequence[Group]) -> str:
    """A sentence that says which configs `shown_together` left out; empty where it left out none."""
    if len(shown) == len(groups):
        return ""
    return (
        f" Of {len(groups)} configs the first one and the {len(shown) - 1} with the lowest validation loss are shown."
    )


def _settings(runs: list[RunRecord]) -> list[dict[str, str]]:
    """The data set's name where it differs or nothing else does, and the values that are not the same in all."""
    configs = [compared(run) for run in runs]
    differing = sorted(set(differing_keys(configs)) - {"data.generation"})
    titles = short_names(differing)
    data = [str(run.info.get("data_name", "data")) for run in runs]
    generations = [str(run.info.get("generation")) for run in runs]
    if len(set(generations)) > len(set(data)):
        data = [f"{name} {generation[:8]}" for name, generation in zip(data, generations, strict=True)]
    named = len(set(data)) > 1 or not differing
    return [
        {
            **({_DATA: source} if named else {}),
            **{titles[key]: value_text(config[key]) for key in differing if key in config},
        }
        for config, source in zip(configs, data, strict=True)
    ]


def _names(settings: list[dict[str, str]]) -> list[str]:
    """Short names. Where more than two keys differ, the first config is the reference and the others say what they
    changed."""
    keys = {key for values in settings for key in values if key != _DATA}
    names = []
    for values in settings:
        changed = [key for key in values if key != _DATA and (len(keys) <= 2 or values[key] != settings[0].get(key))]
        parts = [values[_DATA]] if _DATA in values else []
        parts += [f"{key}={_short(values[key])}" for key in changed]
        if keys and not changed:
            parts.append("reference")
        names.append(_fitting(parts))
    counts = Counter(names)
    return [name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _fitting(parts: list[str]) -> str:
    """As many parts as fit into a name, at least one, and how many others there are."""
    for kept in range(len(parts), 0, -1):
        name = ", ".join(parts[:kept]) + (f", +{len(parts) - kept}" if kept < len(parts) else "")
        if len(name) <= LONGEST_NAME:
            return name
    return name


def _short(value: str) -> str:
    """A value with few digits, and of a path its end."""
    try:
        return f"{float(value):.{_DIGITS}g}" if len(value) > _DIGITS + 2 else value
    except ValueError:
        return f"…/{value.rpartition('/')[2]}" if "/" in value.rstrip("/") else value
