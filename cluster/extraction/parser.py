"""The command line of `dmd extract`, with the options of a cluster. Needs no Ray."""

import argparse

from cluster.cluster_options import add_task_options, check_least
from data_shards.clip_sets.parser import extract_parser as parser_of_this_machine
from data_shards.clip_sets.parser import settings_of
from data_shards.command_line import Parser

CLUSTER_OPTIONS = ("tasks", "memory_per_task", "patience", "verbose")
"""Options that need an address, here or of the job that runs the command."""


def extract_parser() -> Parser:
    """Arguments of `dmd extract`."""
    parser = parser_of_this_machine()
    group = parser.add_argument_group(
        "cluster", "With --address the nodes of a Ray cluster extract the clips, one task each; same features."
    )
    add_task_options(group, needs="the libraries need")
    return parser


def parse_extract(argv: list[str]) -> argparse.Namespace:
    """The options of `dmd extract`.

    Raises:
        ValueError: a value out of range. SystemExit: as argparse.
    """
    parser = extract_parser()
    options = parser.parse_args(argv)
    check_least(options, {"processes": 1, "max_failures": 0, "clip_seconds": 1, "tasks": 1, "patience": 1})
    settings_of(options)
    if options.address is not None and options.processes is not None:
        parser.error("--processes are this machine's; with --address give --tasks, or leave both out")
    return options
