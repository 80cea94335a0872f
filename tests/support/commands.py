"""`dmd` commands in the test's own process, or in one forked from a process that has imported all."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from dmd.cli import main
from tests.support.ranks import forks

_OF_A_BUSY_MACHINE = re.compile(r"waiting for |\d+ of \d+ [a-z ]+, \S+ a second")


def command(*arguments: object) -> int:
    """A `dmd` command in this process; its exit code."""
    return main([str(argument) for argument in arguments])


def rejected(capsys, *arguments: object) -> str:
    """The one line that a command with a mistake prints."""
    capsys.readouterr()
    assert command(*arguments) == 2
    return error_line(capsys)


def error_line(capsys) -> str:
    """The one line of stderr, beside those that say what a busy machine waits for and how far it is."""
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if not _OF_A_BUSY_MACHINE.match(line)]
    assert len(errors) == 1, lines
    return errors[0]


def command_apart(*arguments: object, answers: str = "") -> subprocess.CompletedProcess[str]:
    """A `dmd` command in another process, with these answers on its standard input."""
    with tempfile.TemporaryDirectory() as name:
        streams = [Path(name) / stream for stream in ("in", "out", "err")]
        for stream in streams:
            stream.write_text(answers if stream.name == "in" else "")
        argv = [str(argument) for argument in arguments]
        process = forks.Process(target=_main_apart, args=(argv, [str(stream) for stream in streams]))
        process.start()
        process.join()
        _, out, err = (stream.read_text() for stream in streams)
    assert process.exitcode is not None
    return subprocess.CompletedProcess(argv, process.exitcode, out, err)


def _main_apart(argv: list[str], streams: list[str]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND), number)
    sys.stdin = os.fdopen(0)
    sys.exit(main(argv))
