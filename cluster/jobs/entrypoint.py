"""What a submitted job runs on the cluster: `python -m cluster.jobs.entrypoint tune ...`.

It runs in the uploaded working directory and needs no installed `dmd` command there, since entry points of an upload
are not known to Python. Exit codes are those of the `dmd` command.
"""

import sys

from cluster.commands import evaluate, experiment, predict, tune
from dmd.cli import call

COMMANDS = {"tune": tune, "experiment": experiment, "predict": predict, "evaluate": evaluate}
WITH_ADDRESS = ("predict", "evaluate")
"""Those that run on one process unless they are told where the cluster is."""


def main(argv: list[str]) -> int:
    """Run a command as the `dmd` command does, on the cluster of the job, which RAY_ADDRESS names."""
    name, *rest = argv
    return call(name, COMMANDS[name], ["--address", "auto", *rest] if name in WITH_ADDRESS else rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
