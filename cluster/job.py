"""What a submitted job runs on the cluster: `python -m cluster.job tune ...`, from the uploaded working directory.

It needs no installed `dmd` command there, since entry points of an upload are not known to Python. Exit codes are
those of the `dmd` command.
"""

import sys

from cluster.commands import experiment, tune

COMMANDS = {"tune": tune, "experiment": experiment}
USER_ERROR = 2


def main(argv: list[str]) -> int:
    """Run `tune` or `experiment`; a `ValueError` or `OSError` becomes one line on stderr and exit code 2."""
    name, *rest = argv
    try:
        return COMMANDS[name](rest)
    except (ValueError, OSError) as error:
        print(f"dmd {name}: error: {error}", file=sys.stderr)
        return USER_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
