"""The launcher itself: `dmd train` as a user calls it, and what signals and deaths do to all that it started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from launch.hosts import read_hosts
from tests.launch.ranks import PATIENCE, TINY, assert_bitwise, last
from tests.launch.test_stop import until

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]
SAVES = "train.save_every=2"
ENDLESS = ("train.epochs=500", "train.early_stop=500", "train.keep_checkpoints=9999")
"""Stopped by the test; every checkpoint stays, for `--resume 4`."""
KILLED, STOPPED, LOST = 137, 75, 69


class Command:
    """A `dmd train` under way, in a process group of its own."""

    def __init__(self, shards: Path, run: Path, *arguments: str, **env: str) -> None:
        self.log = run.parent / f"log{len(list(run.parent.glob('log*')))}"
        command = [sys.executable, "-m", "dmd.cli", "train", "--data", str(shards), "--run", str(run)]
        command += [*TINY, SAVES, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        self.run = run

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def leftovers(self) -> list[psutil.Process]:
        """Processes that still name this run on their command line."""
        found = []
        for process in psutil.process_iter():
            try:
                if str(self.run) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found


def test_a_killed_rank_is_reported_and_nothing_is_left(shards, reference, tmp_path):
    """Then the same command again, which is stopped by SIGTERM to the wrapper, and again, to the end."""
    run = tmp_path / "run"
    killed = Command(shards, run, "--ranks", "2", DMD_FAULT="step@3@1")
    assert killed.wait() in (KILLED, LOST), killed.output
    assert "rank 1 on" in killed.output
    assert "was killed by SIGKILL (signal 9)" in killed.output
    assert killed.leftovers() == []
    held = Command(shards, run, "--ranks", "2", *ENDLESS)
    until(lambda: (run / "checkpoints" / "step_00000012").exists(), lambda: held.output)
    held.process.send_signal(signal.SIGTERM)
    assert held.wait() == STOPPED, held.output
    assert f"stopped at step {last(run).step}; the same command continues" in held.output
    assert held.leftovers() == []
    done = Command(shards, run, "--ranks", "2", "--resume", "4")
    assert done.wait() == 0, done.output
    assert_bitwise(run, reference(SAVES, ranks=2))


@pytest.mark.parametrize("victim", ["wrapper", "launcher"])
def test_what_dies_above_the_ranks_takes_them_along(shards, tmp_path, victim):
    run = tmp_path / "run"
    command = Command(shards, run, *ENDLESS)
    until(lambda: (run / "checkpoints" / "step_00000002").exists(), lambda: command.output)
    runner = psutil.Process(command.process.pid).children()[0]
    launcher = runner.children()[0]
    (command.process if victim == "wrapper" else launcher).kill()
    code = command.wait()
    assert code == (-signal.SIGKILL if victim == "wrapper" else LOST), command.output
    until(lambda: command.leftovers() == [], lambda: command.output)
    assert "stopped at step" in command.output, "it was a stop after a checkpoint"
    assert last(run).state["cursor"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no host"), ("a slots=1\na slots=2\n", "line 2 names a again"), ("a\n", "line 1 is 'a'"),
        ("# rank 0\n\na slots=0\n", "line 3 is 'a slots=0'"),
    ],
)  # fmt: skip
def test_a_wrong_hostfile_is_refused(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_hosts(path)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_hosts(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0"], "--ranks is 0"), (["--host-rank", "0"], "without --hosts"),
        (["--hosts", "HOSTS", "--host-rank", "2"], "has the hosts 0 to 1"),
        (["--hosts", "HOSTS", "--ranks", "2"], "the hostfile's slots say"), (["--resume", "yes"], "--resume is 'yes'"),
        (["--ranks", "7"], "7 ranks for 6 ghost batches"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_one_line_and_exit_code_2(shards, tmp_path, capsys, arguments, message):
    from dmd.cli import main

    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=1\n")
    arguments = [str(hosts) if word == "HOSTS" else word for word in arguments]
    assert main(["train", "--data", str(shards), "--run", str(tmp_path / "run"), *TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
