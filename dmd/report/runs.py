"""What a run directory says about its training: config, data, every recorded number by tag, and where it stands."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_shards.durable import Unreadable
from dmd.checkpoint.standing import Standing, read_lines, standing
from dmd.config.loading import config_to_dict, written_config
from dmd.documents import read_document
from dmd.metrics import loss_title
from dmd.metrics.table import DEFAULTS
from dmd.model.config import Task, kind_of
from dmd.model.network import Head
from dmd.system.models import heads_of, name_in, terms_of


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One tag over the training."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    """NaN where the number was not finite."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The record of one run."""

    path: Path
    name: str
    config: dict[str, dict[str, Any]]
    info: dict[str, Any]
    sessions: list[dict[str, Any]]
    curves: dict[str, Curve]
    """By tag, such as `train/total`, `valid/loss`, `train/edges_homo/text_from_vision`."""
    stands: Standing | None = None
    """What its newest checkpoint stands for; None without one."""

    @property
    def finished(self) -> bool:
        """Whether the last session ended the training."""
        return bool(self.sessions[-1].get("finished"))

    @property
    def last_step(self) -> int:
        """The step of its newest checkpoint; 0 without one."""
        return 0 if self.stands is None else self.stands.step

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.config["train"]["seed"])

    @property
    def model(self) -> str:
        """`model.name` of the training."""
        return name_in(self.config)

    @property
    def heads(self) -> Mapping[str, Head]:
        """The heads of its model."""
        return heads_of(self.model)

    @property
    def term_titles(self) -> dict[str, str]:
        """The titles of its model's loss terms, by their tags."""
        return {f"train/{term.name}": term.title for term in terms_of(self.model)}

    @property
    def task(self) -> Task:
        """`model.task` of the training."""
        task: Task = self.config["model"]["task"]
        return task

    @property
    def protocol(self) -> str:
        """By which protocol its validation was measured; older programs knew one of each kind of models."""
        return str(self.info.get("protocol") or DEFAULTS[kind_of(self.task)])

    @property
    def loss_title(self) -> str:
        """What its validation loss is."""
        return loss_title(self.task)

    def best(self) -> tuple[int, float]:
        """Step and validation loss of the checkpoint that is evaluated."""
        assert self.stands is not None
        assert self.stands.best is not None
        return self.stands.best.step, self.stands.best.loss


def read_run(path: Path, *, unfinished: bool = False) -> RunRecord:
    """Read run.json and metrics.jsonl.

    Args:
        path: the run directory.
        unfinished: take a run whose training has not ended too.

    Raises:
        ValueError: no directory, not one of a run, one without a checkpoint or validation, or an unfinished run.
        Unreadable: a checkpoint that cannot be looked at.
    """
    if not path.is_dir():
        raise ValueError(f"there is no run directory {path}")
    below = sorted(str(found.parent) for found in path.glob("*/run.json"))
    if below and not (path / "run.json").exists():
        raise ValueError(f"{path} is no run but holds {len(below)}; name them, such as {' '.join(below[:2])}")
    try:
        document = read_document(path)
        config = config_to_dict(written_config(document["config"]))
        info, sessions = document["info"], document["sessions"]
        stands = standing(path)
        curves = _curves(read_lines(path) if stands is None else stands.lines)
        record = RunRecord(
            path=path,
            name=path.resolve().name,
            config=config,
            info=info,
            sessions=sessions,
            curves=curves,
            stands=stands,
        )
        done = record.finished
    except Unreadable:
        raise
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is not the directory of a training ({type(error).__name__}: {error})") from error
    if "valid/loss" not in curves or not np.isfinite(curves["valid/loss"].values).any():
        raise ValueError(f"{path} has no validation yet; let `dmd train` reach the end of an epoch")
    if not done and not unfinished:
        raise ValueError(f"{path} is not finished; let `dmd train` finish it, or give --unfinished")
    if record.stands is None or record.stands.best is None:
        raise ValueError(f"{path} has no checkpoint with a validation; let `dmd train` reach the end of an epoch")
    return record


def _curves(lines: list[dict[str, Any]]) -> dict[str, Curve]:
    """Every tag of the log."""
    found: dict[str, dict[int, float]] = {}
    for values in lines:
        for tag, value in values.items():
            if "/" in tag:
                found.setdefault(tag, {})[values["step"]] = math.nan if value is None else float(value)
    return {
        tag: Curve(steps=np.array(list(points), dtype=np.int64), values=np.array(list(points.values())))
        for tag, points in found.items()
    }
