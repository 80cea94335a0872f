"""What a submitted job runs on the cluster: `python -m cluster.jobs.entrypoint tune ...`.

It runs in the uploaded working directory and needs no installed `dmd` command there: entry points of an upload are not
known to Python, so they are read from its setup.cfg. Exit codes are those of the `dmd` command.
"""

import configparser
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

from dmd.cli import call

_GROUP = "dmd.commands"


def find_command(name: str) -> EntryPoint:
    """The subcommand of `dmd` with that name, as setup.cfg has it."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg", encoding="utf-8")
    commands = configparser.ConfigParser()
    commands.read_string(f"[{_GROUP}]{setup['options.entry_points'][_GROUP]}")
    return EntryPoint(name=name, value=commands[_GROUP][name], group=_GROUP)


def main(argv: list[str]) -> int:
    """Run a command as `dmd` does."""
    name, *rest = argv
    return call(name, find_command(name).load(), rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
