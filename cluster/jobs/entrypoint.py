"""What a submitted job runs on the cluster: `python -m cluster.jobs.entrypoint tune ...`.

It runs in the uploaded working directory and needs no installed `dmd` command there, since entry points of an upload
are not known to Python. Exit codes are those of the `dmd` command.
"""

import sys

from cluster.commands import experiment, tune
from dmd.cli import call

COMMANDS = {"tune": tune, "experiment": experiment}


def main(argv: list[str]) -> int:
    """Run `tune` or `experiment` as the `dmd` command does."""
    name, *rest = argv
    return call(name, COMMANDS[name], rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
