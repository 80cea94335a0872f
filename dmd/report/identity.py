"""What makes two configs one: the identity by which reports, experiments and lists of runs tell configs apart.

Two trainings are seeds of one config if everything that may change a number is the same: the data and every config
value that the model reads, but those of `BOOKKEEPING`. What a run adds to that, its precision and how far it got, is in
`dmd.report.groups`. Needs no torch.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmd.system.models import DEFAULT, MODELS

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
differ. They change no result beyond rounding, but for the draws of a trained text encoder's dropout: those depend on
`train.ghost_batches_per_forward` and the number of ranks, and are then others as with another seed. A key that is added
to the config counts as a difference until it stands here."""
BUDGET = frozenset({"train.epochs", "train.max_steps", "train.early_stop"})
"""Keys that say when a training ends."""
Config = Mapping[str, Mapping[str, Any]]


def flatten(config: Config) -> dict[str, Any]:
    """A config under dotted keys."""
    return {f"{section}.{key}": value for section, values in config.items() for key, value in values.items()}


def nested(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What `flatten` was given."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return sections


def compared_values(config: Config, dims: Mapping[str, int]) -> dict[str, Any]:
    """The config values in which seeds of one config are equal, for data of these dims (text 0: token ids). Keys that
    the model does not read are none of them."""
    flat = flatten(config)
    values = {key: value for key, value in flat.items() if key not in BOOKKEEPING and concerns(key, flat)}
    if dims.get("text"):  # no text encoder
        return {key: value for key, value in values.items() if not key.startswith("text.")}
    return {**values, "text.encoder": os.path.normpath(str(values["text.encoder"]))}


def concerns(key: str, config: Mapping[str, Any]) -> bool:
    """Whether the model of a flat config reads a dotted key; what is under another is the default, or nothing."""
    row = MODELS.get(str(config.get("model.name", DEFAULT)))
    return row is None or row.reads_key(key)


def value_text(value: Any) -> str:
    """A config value as it is given on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def canonical(value: Any) -> str:
    """Equal for config values that are one: JSON has no tuples, and 25 is 25.0."""
    return json.dumps(float(value) if type(value) is int else value)


def is_same(one: Any, other: Any) -> bool:
    """Whether two config values are one."""
    return canonical(one) == canonical(other)


def differing_keys(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys whose values are not the same in all of some flat configs, in their order. A key that some models do
    not read is compared among the others."""
    keys = dict.fromkeys(key for config in configs for key in config)
    found = []
    for key in keys:
        values = [config.get(key) for config in configs if concerns(key, config)]
        if not all(is_same(value, values[0]) for value in values[1:]):
            found.append(key)
    return found


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Dotted keys without their sections; with them where two would be called the same."""
    names = [key.partition(".")[2] or key for key in keys]
    return {key: name if names.count(name) == 1 else key for key, name in zip(keys, names, strict=True)}


def check_distinct(configs: Mapping[str, Config], dims: Mapping[str, int]) -> None:
    """Raise ValueError where two of some named configs are one, for data of these dims (text 0: token ids): a report
    would take their runs for seeds of one config."""
    seen: dict[str, str] = {}
    for name, config in configs.items():
        values = compared_values(config, dims)
        first = seen.setdefault(json.dumps({key: canonical(value) for key, value in values.items()}), name)
        if first != name:
            other = differing_keys([flatten(configs[first]), flatten(config)])
            how = f"differ in {', '.join(other)} alone, which changes no result" if other else "have the same values"
            raise ValueError(f"{first} and {name} are one config: they {how}; leave one of them out")


def check_seeds(runs: Iterable[tuple[Path, str, int]]) -> None:
    """Raise ValueError where two runs are the same seed of one config: they would count as two seeds in a mean and its
    interval, and say nothing of the spread between seeds.

    Args:
        runs: directory, identity of the config, and seed of each.
    """
    seen: dict[tuple[str, int], Path] = {}
    for run, config, seed in runs:
        first = seen.setdefault((config, seed), run)
        if first != run:
            raise ValueError(
                f"{first} and {run} are both seed {seed} of one config, which counts once in a mean over seeds; leave "
                "one of them out"
            )
