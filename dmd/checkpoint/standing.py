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
from dmd.documents import DOCUMENT, check_course, parse_line, read_document

LINES = "metrics.jsonl"
"""The log of a run as JSON lines."""


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
    validations = _validations(read_lines(run), step)
    schedule, best_step = schedule_of(state), state["best_step"]
    best = next((v for v in reversed(validations) if v.step == (step if best_step is None else best_step)), None)
    if best is None and best_step is not None:
        loss = schedule["best_loss"]
        best = Validation(epoch=schedule["best_epoch"] + 1, step=best_step, loss=loss, best_loss=loss)
    return Standing(step=step, epoch=state["cursor"]["epoch"], best=best, validations=tuple(validations))


def schedule_of(state: dict[str, Any]) -> dict[str, Any]:
    """The schedule of a checkpoint's state, with losses in the units of the labels.

    Older programs, which have no `label_offset`, kept those of labels that `dmd shard` had scaled on the shards' scale.
    """
    schedule, data = state["schedule"], state["data"]
    task, scale = state["config"].get("model", {}).get("task", "regression"), data.get("label_scale", 1.0)
    if "label_offset" in data or scale == 1 or task != "regression":
        return dict(schedule)
    plateau = {**schedule["plateau"], "best": schedule["plateau"]["best"] / scale}
    return {**schedule, "best_loss": schedule["best_loss"] / scale, "plateau": plateau}


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
    sessions = read_document(run)["sessions"] if (run / DOCUMENT).exists() else []
    return dict(sessions[-1]) if sessions else None


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
