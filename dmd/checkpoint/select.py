"""Which checkpoint of a run stands for it: the one with the best validation loss."""

from pathlib import Path

from dmd.checkpoint.format import Snapshot, find_step, newest_whole, read_checkpoint
from dmd.checkpoint.saver import CHECKPOINTS
from dmd.documents import check_state


def best_checkpoint(run: Path) -> Snapshot:
    """The checkpoint with the best validation loss; the newest where no epoch was finished yet.

    Raises:
        ValueError: no checkpoint, or the one that is wanted is damaged.
        Unreadable: one that may be it cannot be read.
    """
    root = run / CHECKPOINTS
    newest, _ = newest_whole(root)
    if newest is None:
        raise ValueError(f"{run} holds no checkpoint: not the directory of a run, or one that has saved nothing yet")
    snapshot = read_checkpoint(newest)
    check_state(snapshot.state, str(newest))
    best = snapshot.state["best_step"]
    if best not in (None, snapshot.step):
        snapshot = read_checkpoint(find_step(root, best))
        check_state(snapshot.state, f"{root}, step {best}")
    return snapshot
