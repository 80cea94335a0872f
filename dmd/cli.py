"""The `dmd` command: finds its subcommands as entry points and loads only the one that is called.

Each floor declares its subcommands in setup.cfg (entry-point group `dmd.commands`). A subcommand is a function
`name(argv: list[str]) -> int` whose docstring's first line is its help. Run `dmd --help`, `dmd NAME --help`.
"""

import select
import signal
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points, version

from data_shards.command_line import did_you_mean
from data_shards.durable import Unreadable
from data_shards.places import redact
from dmd.exit_codes import SIGNALLED, STORAGE, USER_ERROR
from dmd.extras import missing_library
from dmd.streams import discard_stdout, open_closed_streams, stdout_error

GROUPS = {
    "data": ("extract", "shard", "verify", "inspect", "index"),
    "train": ("demo", "train", "presets", "config", "checkpoints", "doctor", "completion"),
    "look": ("runs", "evaluate", "predict", "report", "missing", "track"),
    "share": ("export", "import"),
    "cluster": ("tune", "experiment", "submit"),
}
"""Commands by what one does with them, in the order of `dmd --help`."""


def commands() -> dict[str, EntryPoint]:
    """The subcommands that are installed, in the order of `GROUPS`."""
    there = {point.name: point for point in entry_points(group="dmd.commands")}
    return {name: there[name] for names in GROUPS.values() for name in names if name in there}


def summary(point: EntryPoint) -> str:
    """What a subcommand does, in a line."""
    return (point.load().__doc__ or "").strip().splitlines()[0]


def _help(commands: dict[str, EntryPoint]) -> str:
    lines = ["usage: dmd COMMAND [ARGUMENTS] | dmd --version", "", "dmd COMMAND --help tells more."]
    width = max(map(len, commands))
    for group, names in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {name:<{width}}  {summary(commands[name])}" for name in names if name in commands]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns its exit code."""
    open_closed_streams()
    argv = sys.argv[1:] if argv is None else argv
    known = commands()
    if not argv or argv[0] in ("-h", "--help"):
        return call("--help", lambda rest: print(_help(known)), []) or (0 if argv else USER_ERROR)
    if argv[0] == "--version":
        return call("--version", lambda rest: print(f"dmd-cluster {version('dmd-cluster')}"), [])
    name, *rest = argv
    if name not in known:
        print(f"dmd: error: {_unknown(name, rest, known)}", file=sys.stderr)
        return USER_ERROR
    try:
        return call(name, known[name].load(), rest)
    except KeyboardInterrupt:
        return 130


def _unknown(name: str, rest: list[str], known: Iterable[str]) -> str:
    """What is wrong with a command line whose first word is no command."""
    later = next((word for word in rest if word in known), None)
    if later is not None and not did_you_mean(name, known):
        words = [later, name, *(word for word in rest if word != later)]
        return f"the command comes first: dmd {' '.join(words)}"
    return f"unknown command {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"


def call(name: str, command: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Call a subcommand; a `ValueError`, an `OSError` or a library that is not installed becomes one line on stderr and
    exit code 2; `Unreadable` and a stdout that cannot be written become 74. A reader of stdout that has gone ends it in
    silence, as SIGPIPE would."""
    try:
        code = int(command(argv) or 0)
        sys.stdout.flush()
        return code
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
            discard_stdout()
            return SIGNALLED + signal.SIGPIPE
        if isinstance(error, OSError) and (failure := stdout_error()) is not None:
            discard_stdout()
            print(f"dmd {name}: error: standard output cannot be written: {failure.strerror}", file=sys.stderr)
            return STORAGE
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
