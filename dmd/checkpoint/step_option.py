"""The options of the commands that take a checkpoint of a run: `--step N`, `--best`, `--last`; or the mean of several:
`--average K`, `--soup`."""

import argparse

FEWEST = 2
"""Checkpoints of a mean."""
AVERAGE = "average:"
"""What the name of an average begins with (`dmd.checkpoint.select.Step`); the number of checkpoints follows."""


def add_step(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser; `options.step` is a `dmd.checkpoint.select.Step`, or None where none is given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--step", type=_step, metavar="N", help="the checkpoint of this step (`dmd checkpoints RUN`)")
    best = "that of the best validation loss (the default; the last one before the first validation)"
    group.add_argument("--best", dest="step", action="store_const", const="best", help=best)
    group.add_argument("--last", dest="step", action="store_const", const="last", help="the newest whole one")
    average = "the mean of the weights of the newest K that are kept (train.keep_checkpoints)"
    group.add_argument("--average", dest="step", type=_average, metavar="K", help=average)
    soup = "the mean of those that are kept and do not raise its validation loss (greedy, the best first)"
    group.add_argument("--soup", dest="step", action="store_const", const="soup", help=soup)


def _average(text: str) -> str:
    if not text.isdecimal() or int(text) < FEWEST:
        raise argparse.ArgumentTypeError(f"{text!r} checkpoints have no mean; give {FEWEST} or more, or --last")
    return f"{AVERAGE}{int(text)}"


def _step(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no step; give a number, such as --step 120, or --best or --last")
    return int(text)
