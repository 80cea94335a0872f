"""Where a run stands by its checkpoints: what its log says beyond the newest of them is made again by a resume.

A kill, or a late stop of a trial, leaves a log that is ahead of the checkpoints, or a caller's notes that are behind
them. Whoever says what a run has reached asks here, so that it is what `dmd evaluate` finds.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dmd.checkpoint.format import checkpoint_paths, newest_whole, read_state
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.documents import DOCUMENT, LINES, check_course, parse_line, read_document

STORED_UNTIL = "stored_losses_until"
"""Of a session in run.json: the step up to which the log of an older program has losses on the scale of the shards."""
_VALIDATED = ("valid", "best_valid", "valid_heads", "final")
"""Kinds of lines with the numbers of a validation."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A validation whose checkpoint is there or was replaced by a later one."""

    epoch: int
    """Epochs done; one that `max_steps` cut short counts."""
    step: int
    loss: float
    best_loss: float
    """Validation loss of the checkpoint that was the best by then."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the fused prediction; empty where the log is lost."""


class ValidatedStep(NamedTuple):
    """At which step a run was validated, and with what loss."""

    step: int
    """-1: at none."""
    loss: float
    """NaN where there was none."""


NEVER_VALIDATED = ValidatedStep(step=-1, loss=math.nan)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What the newest whole checkpoint of a run stands for."""

    step: int
    epoch: int
    """Whole epochs done."""
    best: Validation | None
    """That of the checkpoint that `dmd evaluate` takes; None where it was saved before the first validation."""
    validations: tuple[Validation, ...]
    """All up to `step`, in their order."""
    lines: list[dict[str, Any]] = field(default_factory=list, compare=False, repr=False)
    """The whole log, with losses in the units of the labels."""


def standing(run: Path) -> Standing | None:
    """Where a run stands; None without a checkpoint. Reads whole checkpoints.

    Raises:
        ValueError: checkpoints, none of them whole; or a damaged log.
    """
    root = run / CHECKPOINTS
    newest, _ = newest_whole(root)
    if newest is None:
        return None
    state = read_state(newest)
    check_course(state, str(newest))
    step = next(number for number, path in checkpoint_paths(root).items() if path == newest)
    lines = _in_units(read_lines(run), _sessions(run), state)
    validations = _validations(lines, step)
    schedule, best_step = schedule_of(state), state["best_step"]
    best = next((v for v in reversed(validations) if v.step == (step if best_step is None else best_step)), None)
    if best is None and best_step is not None:
        loss = schedule["best_loss"]
        best = Validation(epoch=schedule["best_epoch"] + 1, step=best_step, loss=loss, best_loss=loss)
    return Standing(step=step, epoch=state["cursor"]["epoch"], best=best, validations=tuple(validations), lines=lines)


def schedule_of(state: dict[str, Any]) -> dict[str, Any]:
    """The schedule of a checkpoint's state, with losses in the units of the labels.

    Older programs, which have no `label_offset`, kept those of labels that `dmd shard` had scaled on the shards' scale.
    """
    schedule = state["schedule"]
    if not has_stored_losses(state):
        return dict(schedule)
    scale = state["data"]["label_scale"]
    plateau = {**schedule["plateau"], "best": schedule["plateau"]["best"] / scale}
    return {**schedule, "best_loss": schedule["best_loss"] / scale, "plateau": plateau}


def has_stored_losses(state: dict[str, Any]) -> bool:
    """Whether an older program wrote this state, whose losses are on the scale of the shards and not of the labels."""
    return "label_offset" not in state["data"] and _scale(state) != 1


def _scale(state: dict[str, Any]) -> float:
    """What sentiments that a model learns were multiplied with; 1 where it learns something else."""
    task = state["config"].get("model", {}).get("task", "regression")
    return float(state["data"].get("label_scale", 1.0)) if task == "regression" else 1.0


def _in_units(
    lines: list[dict[str, Any]], sessions: list[dict[str, Any]], state: dict[str, Any]
) -> list[dict[str, Any]]:
    """The log with losses and errors in the units of the labels: older programs logged them on the scale of the shards,
    up to the step at which a session of this one goes on."""
    last = math.inf if has_stored_losses(state) else -1.0
    for session in sessions:
        until = session.get(STORED_UNTIL)
        if type(until) is int:
            last = until
        elif session.get("resume_step", 0) is None:  # began anew, with an empty log
            last = math.inf if has_stored_losses(state) else -1.0
    scale = _scale(state)
    return [
        {
            tag: value / scale if line["step"] <= last and _is_error(tag) and value is not None else value
            for tag, value in line.items()
        }
        for line in lines
    ]


def _is_error(tag: str) -> bool:
    """Whether a tag of a log is a validation's number in the units of the labels."""
    kind, _, name = tag.partition("/")
    return kind in _VALIDATED and name.rpartition("/")[2] in ("loss", "mae")


def newest_validation(run: Path, validated: ValidatedStep) -> ValidatedStep:
    """The last validation of a run without a whole epoch.

    Args:
        validated: that of this session; where it made none, what an earlier one has logged counts.
    """
    stands = standing(run) if validated.step < 0 else None
    if stands is None or stands.best is None:
        return validated
    return ValidatedStep(step=stands.best.step, loss=stands.best.loss)


def read_lines(run: Path) -> list[dict[str, Any]]:
    """The JSON lines of a run's log, none where there is no log; a torn last line is what a kill leaves.

    Raises:
        ValueError: a damaged line before the last.
    """
    path = run / LINES
    texts = path.read_bytes().splitlines() if path.exists() else []
    lines = []
    for number, text in enumerate(texts, 1):
        line = parse_line(text)
        if line is not None:
            lines.append(line)
        elif number < len(texts):
            raise ValueError(f"{path}: line {number} is damaged; remove it to read the rest")
    return lines


def finished_at(run: Path) -> int | None:
    """The step at which a run was finished and its log closed; None while it is not."""
    last = _last_session(run)
    return int(last["last_step"]) if last is not None and last.get("finished") else None


def is_unfinished(run: Path) -> bool:
    """Whether a training has written into this directory, and has not come to its end."""
    last = _last_session(run)
    return last is not None and "started" in last and not last.get("finished")


def _last_session(run: Path) -> dict[str, Any] | None:
    sessions = _sessions(run)
    return dict(sessions[-1]) if sessions else None


def _sessions(run: Path) -> list[dict[str, Any]]:
    return list(read_document(run)["sessions"]) if (run / DOCUMENT).exists() else []


def _validations(lines: list[dict[str, Any]], last: int) -> list[Validation]:
    """The validations up to step `last`. The log of older programs does not name the best; it is the lowest so far."""
    logged = {line["step"]: float(line["best_valid/loss"]) for line in lines if line.get("best_valid/loss") is not None}
    found: list[Validation] = []
    lowest = math.inf
    for line in lines:
        if "valid/loss" not in line or line["step"] > last:
            continue
        numbers = {k.partition("/")[2]: math.nan if v is None else float(v) for k, v in line.items() if "/" in k}
        loss, epoch = numbers.pop("loss"), numbers.pop("epoch", math.nan)
        if not math.isfinite(epoch):
            raise ValueError(f"the log's validation at step {line['step']} has no epoch; remove the line")
        lowest = min(lowest, loss)
        best = next((logged[step] for step in sorted(logged, reverse=True) if step <= line["step"]), lowest)
        found.append(Validation(epoch=int(epoch) + 1, step=line["step"], loss=loss, best_loss=best, metrics=numbers))
    return found
