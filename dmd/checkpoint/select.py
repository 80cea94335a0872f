"""Which checkpoint of a run is taken: by default the one with the best validation loss; or the mean of several."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dmd.checkpoint.averaging import mean_weights
from dmd.checkpoint.format import (
    Snapshot,
    checkpoint_paths,
    find_step,
    newest_whole,
    read_state,
    read_weights,
    read_whole,
    verify_checkpoint,
)
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.checkpoint.step_option import AVERAGE, FEWEST
from dmd.config.loading import written_config
from dmd.documents import check_state, is_exported

_log = logging.getLogger(__name__)
Step = int | str
"""`best`: the checkpoint with the best validation loss, the last one where no epoch was finished yet; `last`: the
newest whole one, from which a training goes on; a number: the checkpoint of that step. `average:K`: the mean of the
weights of the K newest whole ones that were saved one after the other; `soup`: a greedy soup of all that are kept, by
their validation losses."""
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
    assert step != SOUP, "dmd.evaluation.trained_run.read_run makes a soup"
    count = _count_to_average(step)
    root = _root(run)
    if count is not None:
        return mean_of(newest_in_a_row(run, count))
    if isinstance(step, int):
        return read_known(find_step(root, step))
    newest, _ = newest_whole(root)
    assert newest is not None, "it raises where none of them is whole"
    snapshot = read_known(newest)
    best = snapshot.state["best_step"]
    if step == "last" or best in (None, snapshot.step):
        return snapshot
    if best not in checkpoint_paths(root):
        raise ValueError(
            f"the best checkpoint, of step {best}, is gone from {root}; give --last (in Python step='last') for the "
            f"newest one, of step {snapshot.step}"
        )
    return read_known(find_step(root, best))


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


def newest_in_a_row(run: Path, count: int) -> dict[int, Path]:
    """The newest `count` whole checkpoints of a run that were saved one after the other, ascending.

    Retention also spares the best one, which may be many saved steps older: it is not one of them. Hashes no more files
    than that takes.

    Raises:
        ValueError: the run keeps fewer.
        Unreadable: one cannot be read.
    """
    paths = checkpoint_paths(_root(run))
    whole: dict[int, Path] = {}
    in_a_row = len(paths)
    for place, (step, path) in enumerate(reversed(paths.items())):
        if len(whole) == count or place >= in_a_row:
            break
        if _is_whole(path, step):
            # As many as its training keeps are in a row from here on; a damaged one is one of them.
            in_a_row = min(in_a_row, (place if whole else 0) + _keeps(path))
            whole[step] = path
    if len(whole) < count:
        spared = ", ".join(map(str, list(paths)[: len(paths) - in_a_row]))
        beside = f", apart from {spared}, spared as the best" if spared else ""
        raise _too_few(run, f"the mean of {count} checkpoints", count, sorted(whole), beside)
    return dict(sorted(whole.items()))


def all_whole(run: Path) -> dict[int, Path]:
    """All whole checkpoints of a run, ascending, of which a soup is made. Reads whole files.

    Raises:
        ValueError: the run keeps one alone.
        Unreadable: one cannot be read.
    """
    whole = {step: path for step, path in checkpoint_paths(_root(run)).items() if _is_whole(path, step)}
    if len(whole) < FEWEST:
        raise _too_few(run, "a soup", FEWEST, list(whole), "")
    return whole


def _is_whole(path: Path, step: int) -> bool:
    """Whether a checkpoint is whole; a warning where it is damaged."""
    reason = verify_checkpoint(path)
    if reason is not None:
        _log.warning("warning: the checkpoint of step %d is left out of the mean: %s", step, reason)
    return reason is None


def _keeps(path: Path) -> int:
    """`train.keep_checkpoints` of the training that wrote a whole checkpoint."""
    state = read_state(path)
    check_state(state, str(path))
    return written_config(state["config"]).train.keep_checkpoints


def _too_few(run: Path, asked: str, wanted: int, whole: Sequence[int], beside: str) -> ValueError:
    there = f"{len(whole)} (of steps {', '.join(map(str, whole))})" if whole else "none that is whole"
    fewer = f"give {AVERAGE}{len(whole)} (--average {len(whole)}), or " if len(whole) >= FEWEST else ""
    return ValueError(
        f"{asked} takes {wanted} at least, but {run} keeps {there}{beside}; {fewer}train with "
        f"train.keep_checkpoints={max(wanted, USUAL)}"
    )


def mean_checkpoint(run: Path, steps: Sequence[int]) -> Snapshot:
    """The mean of the checkpoints of some steps of a run, ascending (`mean_of`).

    Raises:
        ValueError: one is missing, damaged, or of another model.
        Unreadable: one cannot be read.
    """
    return mean_of({step: find_step(run / CHECKPOINTS, step) for step in steps})


def mean_of(paths: Mapping[int, Path]) -> Snapshot:
    """The mean of checkpoints that are known to be whole, by ascending step, with the state of the last of them, whose
    `averaged` names them all; no training continues from it.

    Raises:
        ValueError: one is of another model.
        Unreadable: one cannot be read.
    """
    *others, last = paths.values()
    newest = read_known(last)
    model = mean_weights(newest.model if path == last else read_weights(path) for path in [*others, last])
    return replace(newest, model=model, optimizer={}, state={**newest.state, AVERAGED: list(paths)})


def read_known(path: Path) -> Snapshot:
    """A checkpoint that is known to be whole.

    Raises:
        ValueError: its state is none of a training.
        Unreadable: it cannot be read.
    """
    snapshot = read_whole(path)
    check_state(snapshot.state, str(path))
    return snapshot
