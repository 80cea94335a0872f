"""The command line of `dmd submit`. Needs no Ray."""

import argparse
from pathlib import Path

from cluster.jobs.job_commands import JOB_COMMANDS
from data_shards.command_line import Parser

DESCRIPTION = (
    "Run a command such as `dmd tune` as a job on a Ray cluster, from a machine that only reaches its dashboard."
)
MANAGED = ("status", "logs", "stop")
"""What is done with a job that is there."""


def make_parser() -> Parser:
    """Arguments of `dmd submit`; what follows the command is the command's."""
    parser = Parser(
        prog="dmd submit",
        description=DESCRIPTION,
        examples=[
            "dmd submit --address http://HEAD:8265 tune --preset mosi-aligned --data /nfs/mosi --out /nfs/lr "
            "--space cluster/spaces/mosi.yaml",
            "dmd submit --address http://HEAD:8265 logs JOB",
        ],
    )
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="the dashboard (default: %(default)s)")
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and return")
    parser.add_argument("--working-dir", type=Path, default=Path(), metavar="DIR", help="the checkout (default: here)")
    parser.add_argument(
        "--environment",
        choices=("pinned", "node"),
        default="pinned",
        help="pinned: the job runs with the versions of constraints.txt; node: with what the nodes have",
    )
    parser.add_argument("--entrypoint-cpus", type=float, default=0, metavar="N", help="0: the driver runs on the head")
    parser.add_argument("--id", help="a name for the job (default: Ray makes one)")
    parser.add_argument("command", choices=(*JOB_COMMANDS, *MANAGED))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the command's own, or a job's id")
    return parser
