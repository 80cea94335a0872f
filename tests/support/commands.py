"""`dmd` commands in the test's own process."""

from dmd.cli import main


def command(*arguments: object) -> int:
    """A `dmd` command in this process; its exit code."""
    return main([str(argument) for argument in arguments])


def rejected(capsys, *arguments: object) -> str:
    """The one line that a command with a mistake prints."""
    capsys.readouterr()
    assert command(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    return error
