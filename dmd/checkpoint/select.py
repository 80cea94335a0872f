"""Which checkpoint of a run is taken: by default the one with the best validation loss."""

from pathlib import Path
from typing import Literal

from dmd.checkpoint.format import Snapshot, checkpoint_paths, find_step, newest_whole, read_checkpoint
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.documents import check_state

Step = Literal["best", "last"] | int
"""best: the checkpoint with the best validation loss, the last one where no epoch was finished yet; last: the newest
whole one, from which a training goes on; a number: the checkpoint of that step."""


def chosen_checkpoint(run: Path, step: Step = "best") -> Snapshot:
    """The checkpoint of a run that is asked for.

    Raises:
        ValueError: no checkpoint; a step that is not there, with those that are; the best one is gone; or the one that
            is wanted is damaged.
        Unreadable: one that may be it cannot be read.
    """
    if step not in ("best", "last") and (isinstance(step, bool) or not isinstance(step, int)):
        raise ValueError(f"step is {step!r}; it must be the step of a checkpoint, 'best' or 'last'")
    root = run / CHECKPOINTS
    if not checkpoint_paths(root):
        is_export = (run / "model.json").exists()
        what = "not the directory of a run, or one that has saved nothing yet"
        raise ValueError(
            f"{run} holds no checkpoint: {'an export, which `dmd predict` reads; name the run' if is_export else what}"
        )
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


def _read(root: Path, step: int) -> Snapshot:
    snapshot = read_checkpoint(find_step(root, step))
    check_state(snapshot.state, f"{root}, step {step}")
    return snapshot
