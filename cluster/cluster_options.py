"""Options that mean something on a Ray cluster only."""

import argparse
from collections.abc import Iterable, Mapping

TASK_PATIENCE = 600
"""Seconds without any task that ends."""


def add_task_options(group: argparse._ArgumentGroup, *, needs: str) -> None:
    """Options of a command whose work is numbered tasks on a cluster (`cluster.ray_runtime.tasks`).

    Args:
        needs: what determines the memory that a task claims by default.
    """
    group.add_argument("--address", help="a Ray cluster, host:port or auto (default: processes of this machine)")
    group.add_argument(
        "--memory-per-task", metavar="SIZE", help=f"what a task claims, such as 2G (default: what {needs})"
    )
    group.add_argument("--tasks", type=int, metavar="N", help="tasks at once, also waiting ones (default: 2 per CPU)")
    group.add_argument(
        "--patience", type=int, metavar="S", help=f"without any task that ends (default: {TASK_PATIENCE})"
    )
    group.add_argument("--verbose", action="store_true", help="show what Ray and the tasks print")


def check_least(options: argparse.Namespace, least: Mapping[str, int]) -> None:
    """Raise ValueError for an option that was given and is less than it may be, by its name in `options`."""
    for name, smallest in least.items():
        value = getattr(options, name)
        if value is not None and value < smallest:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {smallest}")


def require_address(options: argparse.Namespace, names: Iterable[str], *, what: str) -> None:
    """Reject options for what runs on a cluster where the command line names none.

    Args:
        options: with `address` None. The options' defaults are None, or False of a flag.
        names: of the options, as in `options`.
        what: runs on a cluster, such as "actors".

    Raises:
        ValueError: one of them is given.
    """
    assert options.address is None
    for name in names:
        value = getattr(options, name)
        if value is not None and value is not False:
            raise ValueError(f"--{name.replace('_', '-')} is for {what} on a Ray cluster; name one with --address")
