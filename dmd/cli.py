"""The `dmd` command: finds its subcommands as entry points and loads only the one that is called.

Each floor declares its subcommands in setup.cfg (entry-point group `dmd.commands`). A subcommand is a function
`name(argv: list[str]) -> int` whose docstring's first line is its help. Run `dmd --help`, `dmd NAME --help`.
"""

import os
import select
import signal
import sys
from collections.abc import Callable
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points, version

from data_shards.durable import Unreadable
from data_shards.places import redact
from dmd.exit_codes import SIGNALLED, STORAGE, USER_ERROR
from dmd.extras import missing_library


def _commands() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group="dmd.commands"), key=lambda point: point.name)}


def _help(commands: dict[str, EntryPoint]) -> str:
    lines = ["usage: dmd COMMAND [ARGUMENTS] | dmd --version", "", "commands (dmd COMMAND --help tells more):"]
    for name, point in commands.items():
        summary = (point.load().__doc__ or "").strip().splitlines()[0]
        lines.append(f"  {name:<12} {summary}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    commands = _commands()
    if not argv or argv[0] in ("-h", "--help"):
        print(_help(commands))
        return 0 if argv else USER_ERROR
    if argv[0] == "--version":
        print(f"dmd-cluster {version('dmd-cluster')}")
        return 0
    name, *rest = argv
    if name not in commands:
        nearest = "".join(f" (did you mean {near}?)" for near in get_close_matches(name, commands, n=1))
        known = ", ".join(commands)
        print(f"dmd: error: unknown command {name!r}{nearest}; known: {known}", file=sys.stderr)
        return USER_ERROR
    try:
        return call(name, commands[name].load(), rest)
    except KeyboardInterrupt:
        return 130


def call(name: str, command: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Call a subcommand; a `ValueError`, an `OSError` or a library that is not installed becomes one line on stderr and
    exit code 2, `Unreadable` 74. A reader of stdout that has gone ends it in silence, as SIGPIPE would."""
    try:
        return int(command(argv) or 0)
    except Unreadable as error:
        why = redact(str(error))
        print(f"dmd {name}: error: {why}; the same command works when the storage works again", file=sys.stderr)
        return STORAGE
    except ModuleNotFoundError as error:
        why = missing_library(error)
        if not why:
            raise
        print(f"dmd {name}: error: {why}", file=sys.stderr)
        return USER_ERROR
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _stdout_has_no_reader():  # as of `dmd inspect SHARDS | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return SIGNALLED + signal.SIGPIPE
        print(f"dmd {name}: error: {redact(str(error))}", file=sys.stderr)
        return USER_ERROR


def _stdout_has_no_reader() -> bool:
    """Whether stdout is a pipe whose reader has gone; a command has other pipes, whose loss it must tell."""
    if sys.__stdout__ is None:
        return False
    poll = select.poll()
    poll.register(sys.__stdout__, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
