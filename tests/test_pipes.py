"""Commands whose reader goes away, as `head` does."""

import subprocess
import sys

import pytest

from tests.support.trained import make_shards


@pytest.mark.slow
def test_a_reader_that_has_gone_is_no_error(tmp_path):
    shards = make_shards(tmp_path / "shards", 10)
    command = [sys.executable, "-u", "-m", "dmd.cli", "inspect", str(shards)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait() == 141
        assert process.stderr.read() == b""
