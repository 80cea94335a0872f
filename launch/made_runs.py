"""Run directories that `dmd train` names itself where `--run` is left out: `runs/PRESET-001`, then `-002`."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launch.supervision.launcher_log import LOGS

_DIGITS = 3


def choose_run(options: argparse.Namespace) -> None:
    """Give options without `--run` the first name that is free; nothing is made yet.

    Raises:
        ValueError: something else than a directory has the name of their folder.
    """
    from dmd.documents import RUNS  # with NumPy, which `dmd train --help` need not load

    options.run_is_made = options.run is None
    if options.run_is_made:
        if os.path.lexists(RUNS) and not RUNS.is_dir():
            raise ValueError(f"{RUNS} is not a directory, so no run gets a name in it; name one with --run DIR")
        options.run = next(path for path in _names(options) if not os.path.lexists(path))


@contextmanager
def made_run(options: argparse.Namespace) -> Iterator[Path]:
    """The run directory of a training that begins: a name that was made is taken, and printed.

    Another command may have taken it meanwhile: then it is the next one. A directory that was not there before and that
    the training leaves empty is removed again.

    Raises:
        OSError: the directory cannot be made.
    """
    options.run_is_new = options.run_is_made or not os.path.lexists(options.run)
    if options.run_is_made:
        options.run = _take(options)
        print(f"run: {options.run} (--run {options.run} continues it)", flush=True)
    try:
        yield options.run
    finally:
        if options.run_is_new:
            with suppress(OSError):
                options.run.rmdir()


def leave_no_log_alone(options: argparse.Namespace) -> None:
    """In the block of `made_run`, after a training whose end needs no explanation: logs of libraries are no reason to
    keep a new directory with nothing else in it."""
    with suppress(OSError):
        files = list(options.run.iterdir())
        if options.run_is_new and all(path.match(LOGS) for path in files):
            for path in files:
                path.unlink()


def has_begun(options: argparse.Namespace) -> bool:
    """Whether a run whose name was made holds something: then the same command would begin another."""
    return options.run_is_made and options.run.is_dir() and not all(path.match(LOGS) for path in options.run.iterdir())


def _take(options: argparse.Namespace) -> Path:
    from dmd.documents import RUNS

    RUNS.mkdir(exist_ok=True)
    for path in _names(options):
        with suppress(FileExistsError):
            path.mkdir()
            return path
    raise AssertionError("there is a next number")


def _names(options: argparse.Namespace) -> Iterator[Path]:
    from dmd.documents import RUNS

    stem = options.preset or ("run" if options.config is None else Path(options.config).stem)
    number = 0
    while True:
        number += 1
        yield RUNS / f"{stem}-{number:0{_DIGITS}d}"
