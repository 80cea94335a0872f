"""`dmd.train`: a training on one device in this process.

The floor above has the engine; it is found as commands are, by an entry point (`dmd.api` in setup.cfg).
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from data_shards.places import PlaceLike, to_place
from dmd.checkpoint.resume import Resume, parse_resume
from dmd.config import Config, config_from_dict, load_config
from dmd.config.loading import names_config_file
from dmd.dataset import Dataset
from dmd.extras import require
from dmd.training.callbacks import Callback
from dmd.training.outcome import Outcome

ConfigLike = Config | str | Path | Mapping[str, Any]
"""A config; the name of a preset or the path of a YAML or JSON file; or values by dotted or nested keys."""


def train(
    config: ConfigLike,
    data: Dataset | PlaceLike,
    run: str | Path,
    *,
    callbacks: Sequence[Callback] = (),
    resume: Resume = "auto",
) -> Outcome:
    """Train on one device in this process, without a launcher: the GPU where there is one, else the CPU.

    The loop, the log and the checkpoints are those of `dmd train`: the same call continues a run, and so does the
    command, the other way round too (on a CPU bitwise). `dmd.load(run)` gives the model. Afterwards the process is as
    it was: no process group, the same environment, threads and random numbers. On a CPU glibc's malloc keeps freed
    memory meanwhile; afterwards it gives it back again, by fixed thresholds where it had adapted them.

    Ctrl-C (in a notebook: interrupt) stops after a checkpoint, and the call returns an outcome with `stopped` true; the
    same call continues. A second Ctrl-C, or one before the training begins, raises KeyboardInterrupt at once, and the
    newest checkpoint stands.

    Args:
        config: a `Config`, the name of a preset (`dmd presets`), the path of a YAML or JSON file, or values by dotted
            or nested keys such as {"train.epochs": 5, "model": {"dim": 30}}; of a preset with other values
            `dmd.config.load_config("mosi-aligned", ["train.epochs=5"])`.
        data: with a train and a valid split.
        run: directory of the run: all that it writes.
        callbacks: see `Callback`. What one raises is raised here, after a checkpoint.
        resume: "auto": from the newest whole checkpoint, if there is one; "never": reject a run directory with
            checkpoints; a step: from that one, discarding later ones.

    Raises:
        ValueError: the user's mistakes, in the words of `dmd train`; the extra [train] is not installed; this process
            is in a process group or trains already; other shards took the place of the data; another process writes to
            the run (`DirectoryInUse`).
        Diverged: loss or gradient were not finite (a ValueError).
        StorageFailed: the run directory cannot be written (an OSError).
    """
    if not isinstance(run, str | Path) or not str(run).strip():
        raise ValueError(f"run is {run!r}; give the directory of the run, such as runs/first")
    for library in ("deepspeed", "webdataset", "tensorboard"):
        require(library)
    return _found("train")(
        to_config(config),
        (data.checked_place() if isinstance(data, Dataset) else to_place(data)).absolute(),
        Path(run),
        callbacks=callbacks,
        resume=parse_resume(str(resume)),
        overrides=[f"{key}={value}" for key, value in _dotted(config)] if isinstance(config, Mapping) else (),
    )


def to_config(given: ConfigLike) -> Config:
    """The config that a caller means.

    Raises:
        ValueError: no config, unknown preset or key, a key that is given twice, or an impossible value.
    """
    if isinstance(given, Config):
        return given
    if not isinstance(given, str | Path | Mapping):
        raise ValueError(
            f"config is {given!r:.60}; give the name of a preset, a YAML or JSON file, values by keys, or a "
            "dmd.config.Config"
        )
    if not isinstance(given, Mapping):
        is_file = isinstance(given, Path) or names_config_file(given)
        return load_config(file=given) if is_file else load_config(str(given))
    for key in given:
        if not isinstance(key, str):
            raise ValueError(f"config key {key!r} is no text; give keys such as 'train.epochs'")
    nested: dict[str, Any] = {}
    for key, value in _dotted(given):
        section, dot, name = key.partition(".")
        inner = nested.setdefault(section, {})
        if not dot:
            nested[section] = value  # which `config_from_dict` rejects
        elif name in inner:
            raise ValueError(f"config key {key!r} is given twice, dotted and nested; leave one")
        else:
            inner[name] = value
    return config_from_dict(nested)


def _dotted(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Values by dotted keys."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and "." not in key:
            pairs += [(f"{key}.{name}", part) for name, part in value.items()]
        else:
            pairs.append((key, value))
    return sorted(pairs, key=lambda pair: "." not in pair[0])  # what belongs to no section last


def _found(name: str) -> Callable[..., Any]:
    """What a higher floor offers under a name."""
    points = tuple(entry_points(group="dmd.api", name=name))
    if not points:
        raise ValueError(
            f"this installation of dmd-cluster does not say who does dmd.{name}; install it again with pip"
        )
    function: Callable[..., Any] = points[0].load()
    return function
