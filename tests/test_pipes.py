"""Commands whose reader goes away, as `head` does, or whose standard streams are closed or full."""

import os
import shlex
import subprocess
import sys

import pytest

from dmd.cli import call
from tests.support.trained import make_shards


@pytest.mark.slow
def test_a_reader_that_has_gone_is_no_error(tmp_path):
    shards = make_shards(tmp_path / "shards", 10)
    command = [sys.executable, "-u", "-m", "dmd.cli", "inspect", str(shards)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""


def in_shell(line: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`dmd` with these arguments and what else a line of the shell says, such as its redirections."""
    words = shlex.join([sys.executable, "-m", "dmd.cli", *map(str, arguments)])
    return subprocess.run(f"{words} {line}", shell=True, capture_output=True, text=True)


@pytest.mark.slow
def test_closed_streams_are_no_error(tmp_path):
    ended = in_shell("<&- >&-", "runs", tmp_path)
    assert (ended.returncode, ended.stderr) == (0, f"dmd runs: no run below {tmp_path}\n")
    assert in_shell("<&- >&- 2>&-", "presets").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_told_as_such(monkeypatch, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    for name in ("presets", "--help"):
        ended = in_shell("> /dev/full", name)
        assert ended.returncode == 74
        assert ended.stderr == f"dmd {name}: error: standard output cannot be written: No space left on device\n"


def test_the_loss_of_another_pipe_is_told(capsys):
    def command(argv: list[str]) -> int:
        reading, writing = os.pipe()
        os.close(reading)
        try:
            return os.write(writing, b"x")
        finally:
            os.close(writing)

    assert call("shard", command, []) == 2
    assert "dmd shard: error: [Errno 32] Broken pipe" in capsys.readouterr().err
