"""Which runs are seeds of one config, and what to call a config: by the values in which it differs from the others.

Two runs are seeds of one config if everything that may change a number is the same: the data, every config value but
those of `BOOKKEEPING`, the precision that the network really ran in, and how far the training got: finished, or the
epochs that it has done.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmd.report.inference import SplitResult
from dmd.report.runs import RunRecord

BOOKKEEPING = frozenset(
    {
        "train.seed",
        "data.reader",
        "data.workers",
        "data.check",
        "train.ghost_batches_per_forward",
        "train.zero_stage",
        "train.offload",
        "train.reduce_bucket_mb",
        "train.kernels",
        "train.cuda_graph",
        "train.adam",
        "train.deterministic",
        "text.compile",
        "text.gradient_checkpointing",
        "train.collective_timeout",
        "train.save_every",
        "train.save_minutes",
        "train.keep_checkpoints",
        "train.log_every",
        "train.on_storage_error",
        "train.trackers",
    }
)
"""The seed, and the keys of device, throughput, checkpoints and log: the only ones in which seeds of one config may
differ. A key that is added to the config counts as a difference until it stands here."""
BUDGET = frozenset({"train.epochs", "train.max_steps", "train.early_stop"})
"""Keys that say when a training ends."""
Config = Mapping[str, Mapping[str, Any]]


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


def flatten(config: Config) -> dict[str, Any]:
    """A config under dotted keys."""
    return {f"{section}.{key}": value for section, values in config.items() for key, value in values.items()}


def compared_values(config: Config, dims: Mapping[str, int]) -> dict[str, Any]:
    """The config values in which seeds of one config are equal, for data of these dims (text 0: token ids)."""
    values = {key: value for key, value in flatten(config).items() if key not in BOOKKEEPING}
    if dims.get("text"):  # no text encoder
        return {key: value for key, value in values.items() if not key.startswith("text.")}
    return {**values, "text.encoder": os.path.normpath(str(values["text.encoder"]))}


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
    return [
        Group(name=name, members=tuple(bundle))
        for name, bundle in zip(_names([bundle[0].run for bundle in bundles]), bundles, strict=True)
    ]


def _names(runs: list[RunRecord]) -> list[str]:
    """The data set's name where it differs or nothing else does, and the values that are not the same in all.

    Where more than two keys differ, the first config is the reference and the others say what they changed.
    """
    configs = [compared(run) for run in runs]
    keys = sorted({key for config in configs for key in config} - {"data.generation"})
    differing = [key for key in keys if len({json.dumps(config.get(key)) for config in configs}) > 1]
    data = [str(run.info.get("data_name", "data")) for run in runs]
    generations = [str(run.info.get("generation")) for run in runs]
    if len(set(generations)) > len(set(data)):
        data = [f"{name} {generation[:8]}" for name, generation in zip(data, generations, strict=True)]
    names = []
    for config, source in zip(configs, data, strict=True):
        shown = [key for key in differing if len(differing) <= 2 or config.get(key) != configs[0].get(key)]
        parts = [f"{key.partition('.')[2]}={config[key]}" for key in shown if key in config]
        if differing and not parts:
            parts = ["reference"]
        names.append(", ".join([source, *parts] if len(set(data)) > 1 or not parts else parts))
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]
