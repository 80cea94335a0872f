"""The command line of `dmd shard`, with the options of a cluster. Needs no Ray."""

import argparse

from data_shards import commands

CLUSTER_OPTIONS = ("tasks", "memory_per_task", "max_failures", "patience", "verbose")
"""Options that need an address, here or of the job that runs the command."""
MAX_FAILURES = 3
PATIENCE = 600
"""Seconds."""


def shard_parser() -> argparse.ArgumentParser:
    """Arguments of `dmd shard`."""
    parser = commands.shard_parser()
    group = parser.add_argument_group(
        "cluster", "With --address the nodes of a Ray cluster write the shards, one task each; same bytes."
    )
    group.add_argument("--address", help="a Ray cluster, host:port or auto (default: processes of this machine)")
    group.add_argument(
        "--memory-per-task", metavar="SIZE", help="what a task claims, such as 2G (default: what its source needs)"
    )
    group.add_argument("--tasks", type=int, metavar="N", help="tasks at once, also waiting ones (default: 2 per CPU)")
    group.add_argument(
        "--max-failures", type=int, metavar="N", help=f"further attempts at a shard (default: {MAX_FAILURES})"
    )
    group.add_argument("--patience", type=int, metavar="S", help=f"without any task that ends (default: {PATIENCE})")
    group.add_argument("--verbose", action="store_true", help="show what Ray and the tasks print")
    return parser


def parse_shard(argv: list[str]) -> argparse.Namespace:
    """The options of `dmd shard`.

    Raises:
        ValueError: a value out of range. SystemExit: as argparse.
    """
    parser = shard_parser()
    options = commands.parse_shard(parser, argv)
    for name, least in (("tasks", 1), ("max_failures", 0), ("patience", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if options.address is not None and options.processes is not None:
        parser.error("--processes are this machine's; with --address give --tasks, or leave both out")
    return options
