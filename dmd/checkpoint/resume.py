"""Which checkpoint a training continues from: one rank chooses, all of them load it."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from data_shards.durable import as_unreadable
from dmd.checkpoint.format import MANIFEST, Snapshot, checkpoint_paths, find_step, newest_whole, read_checkpoint
from dmd.distributed.collectives import all_or_none, from_first_rank
from dmd.distributed.engine import Engine

Resume = Literal["auto", "never"] | int
"""auto: the newest whole checkpoint, a fresh start where there is none; never: a fresh start in a new run directory;
a number: the checkpoint of that step, later ones are given up."""
Marks = dict[str, tuple[int, int]]
"""Inode and modification time of each checkpoint's manifest, by the checkpoint's name."""


def parse_resume(text: str) -> Resume:
    """The value of `--resume`.

    Raises:
        ValueError: anything but auto, never or a step.
    """
    if text == "auto":
        return "auto"
    if text == "never":
        return "never"
    if text.isdecimal():
        return int(text)
    raise ValueError(f"--resume is {text!r}; it must be auto, never, or the step of a checkpoint")


def choose_checkpoint(root: Path, resume: Resume) -> tuple[Path | None, list[str]]:
    """The checkpoint to continue from (None: a fresh start), and why newer ones were skipped; reads whole files.

    Raises:
        ValueError: checkpoints, none of them whole; a step that is not there or damaged; `never` where a run is.
        Unreadable: a checkpoint that cannot be read, which may be the one.
    """
    if resume == "auto":
        return newest_whole(root)
    if resume != "never":
        return find_step(root, resume), []
    if checkpoint_paths(root):
        raise ValueError(f"{root} holds the checkpoints of a run, which --resume never would replace; give a new --run")
    return None, []


def checkpoint_marks(root: Path) -> Marks:
    """A mark of each checkpoint under `root`, by name; one that is written again at the same step gets another mark.

    Raises:
        Unreadable: `root`, or a checkpoint in it, cannot be read.
    """
    marks = {}
    for path in checkpoint_paths(root).values():
        with as_unreadable(path), suppress(FileNotFoundError):
            status = os.stat(path / MANIFEST)
            marks[path.name] = (status.st_ino, status.st_mtime_ns)
    return marks


def resume_of_restart(root: Path, asked: Resume, before: Marks) -> Resume:
    """What a restart resumes: the newest checkpoint as soon as the training has written one of its own. Until then
    what its command asked for, since later checkpoints of an earlier course may still be there.

    Args:
        before: the checkpoints when the command was given (`checkpoint_marks`).
    """
    return "auto" if checkpoint_marks(root).items() - before.items() else asked


def load_checkpoint(engine: Engine, root: Path, resume: Resume) -> Snapshot | None:
    """Choose on the first rank and read on all. A collective.

    Raises:
        ValueError: as `choose_checkpoint`, on every rank.
        StorageFailed: a checkpoint that a rank cannot read; on every rank.
    """
    path: Path | None = None
    with all_or_none(engine.device):
        if engine.rank == 0:
            path, skipped = choose_checkpoint(root, resume)
            for reason in skipped:
                print(f"skipped a damaged checkpoint: {reason}", flush=True)
    name = from_first_rank(engine, None if path is None else path.name)
    with all_or_none(engine.device):
        return None if name is None else read_checkpoint(root / name)
