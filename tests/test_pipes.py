"""Commands whose reader goes away, as `head` does."""

import os
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
