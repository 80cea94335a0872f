"""Which runs are seeds of one config, and what to call a config: by the values in which it differs from the others."""

import json
from dataclasses import dataclass
from typing import Any

from dmd.report.inference import SplitResult
from dmd.report.runs import RunRecord
from dmd.training.state import FREE_KEYS


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A run and what its best checkpoint says on the split of the report."""

    run: RunRecord
    result: SplitResult


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that differ in their seed alone."""

    name: str
    members: tuple[Measured, ...]

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


def flatten(config: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A config under dotted keys."""
    return {f"{section}.{key}": value for section, values in config.items() for key, value in values.items()}


def identity(run: RunRecord) -> str:
    """Equal for runs that differ only in seed, machine and bookkeeping."""
    kept = {k: v for k, v in flatten(run.config).items() if k not in FREE_KEYS and k != "train.seed"}
    return json.dumps([run.info.get("generation"), kept], sort_keys=True)


def make_groups(measured: list[Measured]) -> list[Group]:
    """Runs by config, in the order of their first appearance."""
    by_identity: dict[str, list[Measured]] = {}
    for one in measured:
        by_identity.setdefault(identity(one.run), []).append(one)
    bundles = list(by_identity.values())
    return [
        Group(name=name, members=tuple(bundle))
        for name, bundle in zip(_names([bundle[0].run for bundle in bundles]), bundles, strict=True)
    ]


def _names(runs: list[RunRecord]) -> list[str]:
    """The data set's name where it differs or nothing else does, and the values that are not the same in all.

    Where more than two keys differ, the first config is the reference and the others tell what they changed.
    """
    configs = [flatten(run.config) for run in runs]
    keys = sorted({key for config in configs for key in config} - FREE_KEYS - {"train.seed"})
    differing = [key for key in keys if len({json.dumps(config.get(key)) for config in configs}) > 1]
    data = [str(run.info.get("data_name", "data")) for run in runs]
    names = []
    for config, source in zip(configs, data, strict=True):
        told = [key for key in differing if len(differing) <= 2 or config.get(key) != configs[0].get(key)]
        parts = [f"{key.partition('.')[2]}={config.get(key)}" for key in told]
        if differing and not parts:
            parts = ["reference"]
        names.append(", ".join([source, *parts] if len(set(data)) > 1 or not parts else parts))
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]
