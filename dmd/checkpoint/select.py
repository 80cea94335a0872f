"""Which checkpoint of a run is taken: by default the one with the best validation loss; or the mean of several."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from dmd.checkpoint.averaging import mean_weights
from dmd.checkpoint.format import (
    Snapshot,
    checkpoint_paths,
    find_step,
    newest_whole,
    read_checkpoint,
    read_weights,
    verify_checkpoint,
)
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.step_option import AVERAGE, FEWEST
from dmd.documents import check_state, is_exported

_log = logging.getLogger(__name__)
Step = int | str
"""`best`: the checkpoint with the best validation loss, the last one where no epoch was finished yet; `last`: the
newest whole one, from which a training goes on; a number: the checkpoint of that step. `average:K`: the mean of the
weights of the K newest whole ones; `soup`: a greedy soup of all that are kept, by their validation losses."""
SOUP = "soup"
AVERAGED = "averaged"
"""Key of a snapshot's state, and of `ModelCard.source`: the steps of the checkpoints whose mean the weights are."""

USUAL = 5
"""Checkpoints that a message suggests to keep."""


def chosen_checkpoint(run: Path, step: Step = "best") -> Snapshot:
    """The checkpoint of a run that is asked for, or the mean of its newest ones (`mean_checkpoint`); no soup, which
    takes an evaluation (`dmd.evaluation.trained_run.read_run`).

    Raises:
        ValueError: no checkpoint; a step that is not there, with those that are; the best one is gone; the one that
            is wanted is damaged; or fewer than an average wants.
        Unreadable: one that may be it cannot be read.
    """
    count = _count_to_average(step)
    root = _root(run)
    if count is not None:
        return mean_checkpoint(run, steps_to_average(run, count))
    if isinstance(step, int):
        return _read(root, step)
    newest, _ = newest_whole(root)
    assert newest is not None, "it raises where none of them is whole"
    snapshot = read_checkpoint(newest)
    check_state(snapshot.state, str(newest))
    best = snapshot.state["best_step"]
    if step == "last" or best in (None, snapshot.step):
        return snapshot
    if best not in checkpoint_paths(root):
        raise ValueError(
            f"the best checkpoint, of step {best}, is gone from {root}; give --last (in Python step='last') for the "
            f"newest one, of step {snapshot.step}"
        )
    return _read(root, best)


def _root(run: Path) -> Path:
    """Where the checkpoints of a run are. Raises ValueError where there are none."""
    root = run / CHECKPOINTS
    if not checkpoint_paths(root):
        exported = "an export, which `dmd predict` reads; `dmd evaluate` takes runs, so name the run"
        what = "not the directory of a run, or one that has saved nothing yet"
        raise ValueError(f"{run} holds no checkpoint: {exported if is_exported(run) else what}")
    return root


def _count_to_average(step: Step) -> int | None:
    """K of `average:K`; None for one checkpoint.

    Raises:
        ValueError: no step at all.
    """
    if step in ("best", "last") or (isinstance(step, int) and not isinstance(step, bool)):
        return None
    if isinstance(step, str) and step.startswith(AVERAGE):
        count = step.removeprefix(AVERAGE)
        if count.isdecimal() and int(count) >= FEWEST:
            return int(count)
    raise ValueError(
        f"step is {step!r}; it must be the step of a checkpoint, 'best' or 'last', or the mean of several: 'average:5' "
        f"of the newest five ({FEWEST} at least), 'soup'"
    )


def steps_to_average(run: Path, count: int | None = None) -> list[int]:
    """The newest `count` whole checkpoints of a run, ascending; None: all of them. Reads whole files.

    Raises:
        ValueError: the run keeps fewer, or one alone.
        Unreadable: one cannot be read.
    """
    root = _root(run)
    reasons = {step: verify_checkpoint(path) for step, path in checkpoint_paths(root).items()}
    whole = [step for step, reason in reasons.items() if reason is None]
    for step, reason in reasons.items():
        if reason is not None:
            _log.warning("warning: the checkpoint of step %d is left out of the mean: %s", step, reason)
    wanted = FEWEST if count is None else count
    if len(whole) < wanted:
        asked = "a soup" if count is None else f"the mean of {count} checkpoints"
        there = f"{len(whole)} (of steps {', '.join(map(str, whole))})" if whole else "none that is whole"
        fewer = f"give {AVERAGE}{len(whole)} (--average {len(whole)}), or " if len(whole) >= FEWEST else ""
        raise ValueError(
            f"{asked} takes {wanted} at least, but {run} keeps {there}; {fewer}train with "
            f"train.keep_checkpoints={max(wanted, USUAL)}"
        )
    return whole[-count:] if count else whole


def mean_checkpoint(run: Path, steps: Sequence[int]) -> Snapshot:
    """The mean of whole checkpoints of a run, with the state of the last of them, whose `averaged` names them all; no
    training continues from it.

    Raises:
        ValueError: one is missing, damaged, or of another model.
        Unreadable: one cannot be read.
    """
    paths = [find_step(run / CHECKPOINTS, step) for step in steps]
    newest = _read(run / CHECKPOINTS, steps[-1])
    model: dict[str, Tensor] = mean_weights(map(read_weights, paths))
    return replace(newest, model=model, optimizer={}, state={**newest.state, AVERAGED: list(steps)})


def _read(root: Path, step: int) -> Snapshot:
    snapshot = read_checkpoint(find_step(root, step))
    check_state(snapshot.state, f"{root}, step {step}")
    return snapshot
