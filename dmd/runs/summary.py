"""One run in short, read from run.json, the state of its newest checkpoint and the end of its log."""

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from dmd.checkpoint.format import checkpoint_paths, read_state, verify_checkpoint
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.standing import has_stored_losses, schedule_of, standing
from dmd.documents import check_course, read_document
from dmd.metrics import known_metrics, loss_title
from dmd.metrics.table import DEFAULTS
from dmd.model.config import kind_of
from dmd.report.identity import flatten
from dmd.runs.log_end import LogEnd, read_end
from dmd.runs.state import State, state_of
from dmd.runs.tags import read_tags
from dmd.system.models import DEFAULT


@dataclass(frozen=True, kw_only=True)
class Best:
    """The validation that a run stands for."""

    step: int
    loss: float
    metrics: dict[str, float]
    """Of the fused prediction, as programs read them; empty where the log is lost."""
    kept: bool
    """Whether its checkpoint is there, so that `dmd evaluate` finds it."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a list of runs shows of one."""

    path: Path
    state: State
    config: dict[str, Any]
    """Under dotted keys, as run.json has it."""
    info: dict[str, Any]
    preset: str
    """That of its command, or the file name of its --config; empty where the command names neither."""
    epochs: int
    """Validated ones."""
    step: int
    """The last one of its log."""
    best: Best | None
    seconds: float
    """That its sessions took."""
    seconds_are_all: bool
    """False where an earlier session was killed, which says nothing of its end."""
    started: datetime | None
    tags: tuple[str, ...]
    session: dict[str, Any]
    """Its last session, as run.json has it."""

    @property
    def seed(self) -> int | None:
        """The seed of the training."""
        return self.config.get("train.seed")

    @property
    def data(self) -> str:
        """The name of the data set."""
        return str(self.info.get("data_name", ""))

    @property
    def loss_title(self) -> str:
        """What its validation loss is."""
        return loss_title(self.config.get("model.task", "regression"))

    @property
    def protocol(self) -> str:
        """By which protocol its validation was measured."""
        return str(self.info.get("protocol") or DEFAULTS[kind_of(self.config.get("model.task", "regression"))])


def read_summary(run: Path) -> RunSummary:
    """Read a run.

    Raises:
        ValueError: a damaged file, or that of something else; no checkpoint is whole.
        OSError: something cannot be read.
    """
    document = read_document(run)
    if not all(isinstance(section, dict) for section in document["config"].values()):
        raise ValueError(f"{run}/run.json has a config of another shape; restore the file")
    config = {"model.name": DEFAULT, **flatten(document["config"])}
    sessions = document["sessions"]
    newest = _newest_state(run)
    best_step = None if newest is None else _best_step(*newest)
    end = read_end(run, best_step)
    state = state_of(run, config, sessions, end.step)
    course = _course(sessions)
    seconds, seconds_are_all = session_seconds(course, end=time.time() if state == "running" else end.time)
    return RunSummary(
        path=run,
        state=state,
        config=config,
        info=document["info"],
        preset=_preset(course[-1]) if course else "",
        epochs=end.epochs,
        step=max(end.step, 0 if newest is None else newest[0]),
        best=_best(run, newest, best_step, end),
        seconds=seconds,
        seconds_are_all=seconds_are_all,
        started=_time(course[0].get("started")) if course else None,
        tags=read_tags(run),
        session=course[-1] if course else {},
    )


def _newest_state(run: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest checkpoint that is whole by the sizes of its files; None without a checkpoint.

    Raises:
        ValueError: there are some and none is whole.
    """
    paths = checkpoint_paths(run / CHECKPOINTS)
    for step, path in reversed(paths.items()):
        if verify_checkpoint(path, tensors=False) is None:
            state = read_state(path)
            check_course(state, str(path))
            return step, state
    if paths:
        raise ValueError(f"no checkpoint in {run / CHECKPOINTS} is whole; `dmd checkpoints {run}` says why")
    return None


def _best_step(newest: int, state: dict[str, Any]) -> int:
    return newest if state["best_step"] is None else int(state["best_step"])


def _best(run: Path, newest: tuple[int, dict[str, Any]] | None, step: int | None, end: LogEnd) -> Best | None:
    """The validation that a run stands for; None before the first one."""
    if newest is not None and has_stored_losses(newest[1]):  # whose units the whole log says
        stands = standing(run)
        if stands is None or stands.best is None:
            return None
        return Best(step=stands.best.step, loss=stands.best.loss, metrics=_metrics(stands.best.metrics), kept=True)
    if end.best is not None:
        numbers = {tag.partition("/")[2]: math.nan if v is None else v for tag, v in end.best.items() if "/" in tag}
        loss = float(numbers.get("loss", math.nan))
        return Best(step=end.best["step"], loss=loss, metrics=_metrics(numbers), kept=newest is not None)
    if newest is None or step is None or newest[1]["best_step"] is None:
        return None
    return Best(step=step, loss=float(schedule_of(newest[1])["best_loss"]), metrics={}, kept=True)


def _metrics(numbers: dict[str, float]) -> dict[str, float]:
    return {name: float(numbers[name]) for name in known_metrics(numbers)}


def _course(sessions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sessions since the run last began anew."""
    first = max((number for number, one in enumerate(sessions) if one.get("resume_step", 0) is None), default=0)
    return sessions[first:]


def session_seconds(sessions: Sequence[dict[str, Any]], *, end: float | None) -> tuple[float, bool]:
    """How long sessions took, and whether that is known of all.

    Args:
        end: of the last session where it does not say so itself, in seconds since 1970; None: that is not known.
    """
    total, are_all = 0.0, True
    for number, session in enumerate(sessions, 1):
        started, ended = _time(session.get("started")), _time(session.get("ended"))
        if started is None:
            continue
        until = None if ended is None else ended.timestamp()
        if until is None and number == len(sessions):
            until = end
        if until is None:
            are_all = False
        else:
            total += max(0.0, until - started.timestamp())
    return total, are_all


def _time(text: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None


def _preset(session: dict[str, Any]) -> str:
    """The preset that a session's command names, or else the file name of its `--config`."""
    try:
        words = shlex.split(str(session.get("command", "")))
    except ValueError:
        return ""
    return _given(words, "--preset") or Path(_given(words, "--config")).name


def _given(words: list[str], option: str) -> str:
    """The value of an option, as it is given last; "" where it is not."""
    given = [
        after if word == option else word.partition("=")[2]
        for word, after in pairwise([*words, ""])
        if word == option or word.startswith(f"{option}=")
    ]
    return given[-1] if given else ""
