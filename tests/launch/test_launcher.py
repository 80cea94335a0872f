"""The launcher itself: `dmd train` as a user calls it, and what signals and deaths do to all that it started."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.starting.hosts import read_hosts
from tests.support.commands import error_line
from tests.support.ranks import ENDLESS, PATIENCE, TINY, assert_bitwise, finish, last
from tests.support.waiting import until

pytestmark = [pytest.mark.multiproc, pytest.mark.slow]
SAVES = "train.save_every=2"
KILLED, STOPPED, LOST = 137, 75, 69


class Command:
    """A `dmd train` under way, in a process group of its own."""

    def __init__(self, shards: Path, run: Path, *arguments: str, **env: str) -> None:
        self.log = run.parent / f"log{len(list(run.parent.glob('log*')))}"
        command = [sys.executable, "-m", "dmd.cli", "train", "--data", str(shards), "--run", str(run)]
        command += [*TINY, SAVES, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        environment = {name: value for name, value in environment.items() if value}
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
    """Then the same command again, which is stopped by SIGTERM to the wrapper; what it has saved goes on to the end."""
    run = tmp_path / "run"
    killed = Command(shards, run, "--ranks", "2", DMD_FAULT="step@3@1")
    assert killed.wait() in (KILLED, LOST), killed.output
    assert "rank 1 on" in killed.output
    assert "was killed by SIGKILL (signal 9)" in killed.output
    until(lambda: killed.leftovers() == [], lambda: killed.output)
    held = Command(shards, run, "--ranks", "2", *ENDLESS)
    until(lambda: (run / "checkpoints" / "step_00000006").exists(), lambda: held.output)
    held.process.send_signal(signal.SIGTERM)
    assert held.wait() == STOPPED, held.output
    assert f"stopped at step {last(run).step}; the command with --run {run} continues from" in held.output
    assert held.leftovers() == []
    finish(shards, run, SAVES, ranks=2, resume="4")
    assert_bitwise(run, reference(SAVES, ranks=2))


@pytest.mark.parametrize(("victim", "ranks"), [("wrapper", 1), ("launcher", 1), ("all", 2)])
def test_what_dies_above_the_ranks_takes_them_along(shards, tmp_path, victim, ranks):
    """A parent's death is a request to stop; two of them are not two requests."""
    run = tmp_path / "run"
    command = Command(shards, run, "--ranks", str(ranks), *ENDLESS)
    until(lambda: (run / "checkpoints" / "step_00000002").exists(), lambda: command.output)
    launcher = psutil.Process(command.process.pid).children()[0]
    for process in {"wrapper": [command.process], "launcher": [launcher]}.get(victim, [command.process, launcher]):
        process.kill()
    code = command.wait()
    assert code == (LOST if victim == "launcher" else -signal.SIGKILL), command.output
    until(lambda: command.leftovers() == [], lambda: command.output)
    assert "stopped at step" in command.output, "it was a stop after a checkpoint"
    assert last(run).state["cursor"]


def everything(command: Command) -> list[psutil.Process]:
    """`dmd train` and all that it has started."""
    own = psutil.Process(command.process.pid)
    return [own, *own.children(recursive=True)]


def in_launchers_group(command: Command) -> list[psutil.Process]:
    """The process group in which the ranks are."""
    launcher = everything(command)[1].pid
    return [process for process in everything(command) if os.getpgid(process.pid) == launcher]


@pytest.mark.parametrize(
    ("number", "receivers", "ranks"),
    [
        (signal.SIGTERM, everything, 2),
        (signal.SIGINT, everything, 1),
        (signal.SIGTERM, in_launchers_group, 1),
        (signal.SIGINT, in_launchers_group, 2),
        (signal.SIGINT, lambda command: everything(command)[:1], 1),
    ],
    ids=["all-2", "all-int-1", "group-1", "group-int-2", "wrapper-int-1"],
)
def test_a_stop_is_one_request_however_it_is_sent(shards, tmp_path, number, receivers, ranks):
    run = tmp_path / "run"
    command = Command(shards, run, "--ranks", str(ranks), *ENDLESS, OMP_NUM_THREADS="")
    until(lambda: (run / "checkpoints" / "step_00000002").exists(), lambda: command.output)
    for process in receivers(command):
        process.send_signal(number)
    assert command.wait() == STOPPED, command.output
    assert f"stopped at step {last(run).step}; the command with --run {run} continues from" in command.output
    assert "Traceback" not in command.output
    assert command.leftovers() == []
    threads = json.loads((run / "run.json").read_text())["info"]["threads"]
    assert f"threads: {threads} per rank (" in command.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_the_start_ends_at_once(shards, tmp_path, number):
    command = Command(shards, tmp_path / "run", "--ranks", "2", *ENDLESS)
    until(lambda: len(everything(command)) == 2, lambda: command.output)
    for process in everything(command):
        process.send_signal(number)
    asked = time.monotonic()
    assert command.wait() == STOPPED, command.output
    assert time.monotonic() - asked < 20
    assert command.output.splitlines()[-1] == ("dmd train: asked to stop before a rank ran; the same command continues")
    assert "Traceback" not in command.output
    assert not (tmp_path / "run").exists()


def test_the_cause_is_the_last_line_and_the_exit_code(shards, tmp_path):
    command = Command(shards, tmp_path / "run", "--ranks", "2", DMD_FAULT="mistake:step@2@1")
    assert command.wait() == 2, command.output
    assert command.output.splitlines()[-1] == (
        f"dmd train: error: rank 1 on {socket.gethostname()}: a mistake of the user's"
    )
    assert command.output.count("a mistake of the user's") == 1
    assert "lost the other ranks" not in command.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no host"),
        ("a slots=1\na slots=2\n", "line 2 names a again"),
        ("a\n", "line 1 is 'a'"),
        ("# rank 0\n\na slots=0\n", "line 3 is 'a slots=0'"),
        ("Node slots=1\nnode slots=1\n", "names node again"),
        ("a slots=00\n", "line 1 is"),
        ("a slots=2  # gpu box\n", "a comment needs a line of its own"),
        ("\ufeffa slots=1\n", "begins with a byte order mark"),
        ("a slots=\u0663\n", "line 1 is"),
    ],
)
def test_a_wrong_hostfile_is_rejected(tmp_path, text, message):
    path = tmp_path / "hosts"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_hosts(path)
    path.write_text("a slots=1\n", encoding="utf-16")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_hosts(path)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_hosts(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "0"], "--ranks is 0"),
        (["--host-rank", "0"], "without --hosts"),
        (["--hosts", "HOSTS", "--host-rank", "2"], "has the hosts 0 to 1"),
        (["--hosts", "HOSTS", "--ranks", "2"], "the hostfile's slots say"),
        (["--resume", "yes"], "--resume is 'yes'"),
        (["--ranks", "25"], "25 ranks for 6 ghost batches"),
        (["--port", "0"], "--port is 0; a TCP port is a number"),
        (["--port", "TAKEN"], "is taken on this host; give another --port"),
        (["--hosts", "HOSTS", "--host-rank", "0", "--port", "TAKEN"], "is taken on this host"),
        (["--hosts", "HOSTS", "--host-rank", "1", "--port", "65536"], "--port is 65536"),
    ],
)
def test_a_wrong_command_is_one_line_and_exit_code_2(shards, tmp_path, capsys, arguments, message):
    from dmd.cli import main

    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=1\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = {"HOSTS": str(hosts), "TAKEN": str(server.getsockname()[1])}
        arguments = [words.get(word, word) for word in arguments]
        assert main(["train", "--data", str(shards), "--run", str(tmp_path / "run"), *TINY, *arguments]) == 2
    error = error_line(capsys)
    assert message in error
    assert not (tmp_path / "run").exists()
