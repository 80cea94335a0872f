"""`dmd evaluate --ranks`: the numbers of one process, one message of a failure, and nobody listens to other hosts."""

import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.commands import command

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]


def evaluate(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "dmd.cli", "evaluate", *map(str, arguments)]


def test_two_ranks_give_the_numbers_of_one_and_listen_on_the_loopback(run, tmp_path):
    assert command("evaluate", run, "--split", "train", "--json", tmp_path / "one.json") == 0
    process = subprocess.Popen(evaluate(run, "--split", "train", "--ranks", 2, "--json", tmp_path / "two.json"))
    listening: set[str] = set()
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):  # it has ended since
            own = psutil.Process(process.pid)
            for member in (own, *own.children(recursive=True)):
                sockets = member.net_connections("tcp")
                listening |= {socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN}
        time.sleep(0.1)
    assert process.returncode == 0
    assert listening == {"127.0.0.1"}
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert two["metrics"]["fused"] == pytest.approx(one["metrics"]["fused"], rel=1e-5)


def test_a_failure_is_one_line(tmp_path: Path):
    ended = subprocess.run(evaluate(tmp_path / "gone", "--ranks", 2), capture_output=True, text=True)
    assert ended.returncode == 2
    assert [line for line in ended.stderr.splitlines() if "error" in line] == ended.stderr.splitlines()
    assert "there is no run directory" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
