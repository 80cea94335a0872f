"""Commands whose reader goes away, as `head` does, or whose standard streams are closed or full."""

import io
import json
import os
import shlex
import subprocess
import sys

import pytest

from dmd.cli import call
from dmd.streams import LastingFile
from tests.support.trained import SMALL, make_shards


@pytest.mark.slow
def test_a_reader_that_has_gone_is_no_error(tmp_path):
    shards = make_shards(tmp_path / "shards", 10)
    command = [sys.executable, "-u", "-m", "dmd.cli", "inspect", str(shards)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""


@pytest.mark.slow
@pytest.mark.multiproc
def test_a_training_whose_reader_has_gone_goes_on(tmp_path):
    """As of `dmd train ... 2>&1 | head -1`."""
    shards, run = make_shards(tmp_path / "shards", 40), tmp_path / "run"
    command = [sys.executable, "-m", "dmd.cli", "train", "--data", str(shards), "--run", str(run), "--ranks", "1"]
    with subprocess.Popen([*command, *SMALL], stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait() == 0
    assert json.loads((run / "run.json").read_text())["sessions"][-1]["finished"]
    assert list(run.glob("checkpoints/step_*"))


def test_a_lost_reader_is_told_once(capsys):
    reading, writing = os.pipe()
    with (
        open(reading) as reader,
        io.TextIOWrapper(LastingFile(writing, told="nobody reads"), write_through=True) as out,
    ):
        print("read", file=out)
        assert reader.readline() == "read\n"
        reader.close()
        for _ in range(2):
            print("lost", file=out)
    assert capsys.readouterr().err == "nobody reads\n"


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
