"""The command line of `dmd shard`, with the options of a cluster. Needs no Ray."""

import argparse

from cluster.cluster_options import add_task_options, check_least
from data_shards import commands
from data_shards.command_line import Parser

CLUSTER_OPTIONS = ("tasks", "memory_per_task", "max_failures", "patience", "verbose")
"""Options that need an address, here or of the job that runs the command."""
MAX_FAILURES = 3


def shard_parser() -> Parser:
    """Arguments of `dmd shard`."""
    parser = commands.shard_parser()
    group = parser.add_argument_group(
        "cluster", "With --address the nodes of a Ray cluster write the shards, one task each; same bytes."
    )
    add_task_options(group, needs="its source needs")
    group.add_argument(
        "--max-failures", type=int, metavar="N", help=f"further attempts at a shard (default: {MAX_FAILURES})"
    )
    return parser


def parse_shard(argv: list[str]) -> argparse.Namespace:
    """The options of `dmd shard`.

    Raises:
        ValueError: a value out of range. SystemExit: as argparse.
    """
    parser = shard_parser()
    options = commands.parse_shard(parser, argv)
    check_least(options, {"tasks": 1, "max_failures": 0, "patience": 1})
    if options.address is not None and options.processes is not None:
        parser.error("--processes are this machine's; with --address give --tasks, or leave both out")
    return options
