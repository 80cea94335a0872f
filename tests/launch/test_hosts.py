"""Two hosts: network namespaces with their own interface and address, one rank each.

Needs root, `ip` (iproute2) and for ssh `sshd` and `pdsh`; in CI they are there.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from launch.starting.rank_processes import check_ssh
from tests.support.hosts import Host, can_make_hosts, hosts
from tests.support.ranks import ENDLESS, PATIENCE, TINY, assert_bitwise, assert_close, finish, last
from tests.support.waiting import until

pytestmark = [
    pytest.mark.hosts,
    pytest.mark.multiproc,
    pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts, reason="needs root and iproute2"),
]
SAVES = "train.save_every=2"
USER_ERROR, LOST, STORAGE, STOPPED = 2, 69, 74, 75


@dataclass(frozen=True)
class Two:
    """The hosts and the file that lists them."""

    pair: tuple[Host, ...]
    file: Path

    def start(self, host: int, log: Path, command: list[str], **env: str) -> subprocess.Popen[bytes]:
        """Run a command on a host."""
        with log.open("wb") as file:
            return subprocess.Popen(
                [*self.pair[host].inside, *command],
                stdout=file,
                stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1", **env},
            )


def dmd_train(shards: Path, run: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "dmd.cli", "train", "--data", str(shards), "--run", str(run)]
    return [*command, *TINY, SAVES, "train.collective_timeout=20", *arguments]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    file = tmp_path_factory.mktemp("hosts") / "hosts"
    with hosts(2) as pair:
        file.write_text("".join(f"{host.address} slots=1\n" for host in pair))
        yield Two(pair, file)


def per_host(two: Two, shards: Path, run: Path, *arguments: str) -> tuple[list[subprocess.Popen[bytes]], list[Path]]:
    """One command per host, no ssh; the processes and their logs."""
    logs = [run.parent / f"log-{time.monotonic_ns()}-{host}" for host in range(2)]
    command = dmd_train(shards, run, "--hosts", str(two.file), *arguments)
    return [two.start(host, logs[host], [*command, "--host-rank", str(host)]) for host in range(2)], logs


def test_per_host_commands_and_a_link_that_goes_down(two, shards, reference, tmp_path, capsys):
    run = tmp_path / "run"
    processes, logs = per_host(two, shards, run, *ENDLESS)
    text = lambda: "\n".join(log.read_text(errors="replace") for log in logs)  # noqa: E731
    until(lambda: (run / "checkpoints" / "step_00000004").exists(), text)
    down_at = time.monotonic()
    two.pair[1].link("down")
    codes = [process.wait(PATIENCE) for process in processes]
    noticed = time.monotonic() - down_at
    two.pair[1].link("up")
    assert codes == [LOST, LOST], text()
    for rank, log in enumerate(logs):
        assert f"rank {rank} on" in log.read_text(errors="replace")
        assert "lost the other ranks" in log.read_text(errors="replace")
    finish(shards, run, SAVES, ranks=2, resume="4")
    assert_bitwise(run, reference(SAVES, ranks=2))
    with capsys.disabled():
        print(f"\na link that goes down: both hosts ended {noticed:.1f} s after it, of 20 s that they may wait")


@pytest.fixture
def ssh(two: Two, tmp_path: Path) -> Iterator[dict[str, str]]:
    """An sshd on each host, and the environment in which `ssh` gets in without a question."""
    sshd = shutil.which("sshd") or ("/usr/sbin/sshd" if Path("/usr/sbin/sshd").exists() else None)
    if not (sshd and shutil.which("pdsh") and shutil.which("ssh")):
        pytest.skip("openssh-server and pdsh are not installed (apt-get install openssh-server pdsh)")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    (tmp_path / "sshd_config").write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/user.pub\nPermitRootLogin yes\nStrictModes no\n"
        "UsePAM no\nPidFile none\nPasswordAuthentication no\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"IdentityFile {tmp_path}/user\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n"
    )
    shim = tmp_path / "bin" / "ssh"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/ssh_config "$@"\n')
    shim.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    servers = [
        two.start(host, tmp_path / f"sshd{host}", [sshd, "-D", "-f", str(tmp_path / "sshd_config")])
        for host in range(2)
    ]
    yield {"PATH": f"{shim.parent}:{os.environ['PATH']}"}
    for server in servers:
        server.kill()
        server.wait()


def test_ssh_starts_all_hosts_and_carries_a_signal(two, ssh, shards, reference, tmp_path):
    """Then the same command again, to the end: the run of one host."""
    run, log = tmp_path / "run", tmp_path / "log"
    text = lambda: log.read_text(errors="replace")  # noqa: E731
    wrapper = two.start(0, log, dmd_train(shards, run, "--hosts", str(two.file), *ENDLESS), **ssh)
    until(lambda: (run / "checkpoints" / "step_00000004").exists() or wrapper.poll() is not None, text)
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(PATIENCE) == STOPPED, text()
    assert f"stopped at step {last(run).step}" in text()
    wrapper = two.start(0, log, dmd_train(shards, run, "--hosts", str(two.file), "--resume", "4"), **ssh)
    assert wrapper.wait(PATIENCE) == 0, text()
    assert_bitwise(run, reference(SAVES, ranks=2))


def test_the_cause_on_one_host_is_that_of_both(two, shards, tmp_path):
    """A mistake that rank 1 alone meets, then a stop request while host 0 still waits for host 1."""
    run = tmp_path / "run"
    command = dmd_train(shards, run, "--hosts", str(two.file))
    logs = [tmp_path / f"log{host}" for host in range(2)]
    processes = [
        two.start(host, logs[host], [*command, "--host-rank", str(host)], DMD_FAULT="mistake:step@2@1")
        for host in range(2)
    ]
    assert [process.wait(PATIENCE) for process in processes] == [2, 2]
    message = f"dmd train: error: rank 1 on {socket.gethostname()}: a mistake of the user's"
    for log in logs:
        assert log.read_text(errors="replace").splitlines()[-1] == message
        assert log.read_text(errors="replace").count("a mistake of the user's") == 1
    waiting = two.start(0, logs[0], [*command, "--host-rank", "0"])
    until(lambda: children_named(waiting.pid, "launch/train.py") >= 2, lambda: logs[0].read_text(errors="replace"))
    waiting.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert waiting.wait(PATIENCE) == STOPPED, logs[0].read_text(errors="replace")
    assert time.monotonic() - asked < 20
    assert "was asked to stop before its first step" in logs[0].read_text(errors="replace").splitlines()[-1]


def children_named(process: int, name: str) -> int:
    """How many descendants of a process have this on their command line."""
    found = 0
    for child in psutil.Process(process).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            found += any(name in word for word in child.cmdline()[:4])
    return found


@pytest.mark.parametrize("way", ["every-process-of-host-0", "during-start"])
def test_ssh_stops_as_schedulers_ask(two, ssh, shards, tmp_path, way):
    run, log = tmp_path / "run", tmp_path / "log"
    text = lambda: log.read_text(errors="replace")  # noqa: E731
    wrapper = two.start(0, log, dmd_train(shards, run, "--hosts", str(two.file), *ENDLESS), **ssh)
    if way == "during-start":
        until(lambda: children_named(wrapper.pid, "pdsh") > 0 or wrapper.poll() is not None, text)
        wrapper.send_signal(signal.SIGTERM)
    else:
        until(lambda: (run / "checkpoints" / "step_00000002").exists() or wrapper.poll() is not None, text)
        for process in (*psutil.Process(wrapper.pid).children(recursive=True), psutil.Process(wrapper.pid)):
            process.send_signal(signal.SIGTERM)
    assert wrapper.wait(PATIENCE) == STOPPED, text()
    assert (f"stopped at step {last(run).step}" if way != "during-start" else "asked to stop before") in text()
    assert "Traceback" not in text()


def test_the_cause_over_ssh_comes_last_and_once(two, ssh, shards, tmp_path):
    log = tmp_path / "log"
    wrapper = two.start(
        0, log, dmd_train(shards, tmp_path / "run", "--hosts", str(two.file)), **ssh, DMD_FAULT="storage:step@2@1"
    )
    assert wrapper.wait(PATIENCE) == STORAGE, log.read_text(errors="replace")
    output = log.read_text(errors="replace")
    assert "No space left on device; the same command continues when" in output.splitlines()[-1]
    assert output.splitlines()[-1].startswith(f"dmd train: error: rank 1 on {socket.gethostname()}: ")
    assert output.count("No space left on device") == 1


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("train.seed=2", r"the ranks were not given .*: train\.seed is 1111 on .* \(rank 0\), 2 on .* \(rank 1\)"),
        ("model.dim=7", r"model\.heads is 2; it must divide model\.dim, which is 7"),
    ],
    ids=["by-all-ranks", "by-dmd-train-of-one-host"],
)
def test_hosts_that_were_not_given_the_same(two, shards, tmp_path, own, message):
    """Both hosts print it and end, no matter which one finds it."""
    logs = [tmp_path / f"log{host}" for host in range(2)]
    command = dmd_train(shards, tmp_path / "run", "--hosts", str(two.file))
    given = [[], [own]]
    processes = [two.start(host, logs[host], [*command, *given[host], "--host-rank", str(host)]) for host in range(2)]
    codes = [process.wait(PATIENCE) for process in processes]
    for code, log in zip(codes, logs, strict=True):
        text = log.read_text(errors="replace")
        assert code == USER_ERROR, text
        assert len(re.findall(f"dmd train: error: .*{message}", text)) == 1, text


def test_a_training_goes_on_without_the_host_of_rank_0(two, ssh, shards, reference, tmp_path):
    """Its rank hangs in step 7, and holds the run directory, when it is cut off: what it had saved of step 6 goes on at
    once on the host that is left."""
    run, log, file = tmp_path / "run", tmp_path / "log", tmp_path / "hosts"
    text = lambda: log.read_text(errors="replace")  # noqa: E731
    left, lost = two.pair
    file.write_text(f"{lost.address} slots=1\n{left.address} slots=1\n")
    command = dmd_train(shards, run, "--hosts", str(file), "--restarts", "1", "--min-ranks", "1")
    wrapper = two.start(0, log, command, **ssh, DMD_FAULT="hang:step@7@0")
    until(lambda: (run / "checkpoints" / "step_00000006").exists() or wrapper.poll() is not None, text)
    lost.link("down")
    try:
        assert wrapper.wait(PATIENCE) == 0, text()
    finally:
        lost.link("up")
    there = re.escape(left.address)
    why = "rank 0 ended without a report, as did its supervisor"
    restart = rf"dmd train: restart 1 of 1: {why}; from step_00000006 on 1 rank \({there}\)"
    assert re.search(restart, text()), text()
    assert_close(run, reference(SAVES, ranks=1))
    about = json.loads((run / "run.json").read_text())
    assert (about["info"]["ranks"], len(about["sessions"])) == (1, 2)


def test_a_host_that_ssh_cannot_reach_is_named(ssh):
    with pytest.raises(ValueError, match=r"ssh cannot reach no-such-host\.invalid \(.*\); `ssh no-such-host"):
        check_ssh(["no-such-host.invalid"], "")


def test_words_and_secrets_reach_the_ranks_alone(two, ssh, shards, tmp_path):
    """From a directory with spaces into a run directory that a shell would split; no process list shows the token,
    no file keeps it, and rank 0 listens on the address of the hostfile."""
    token, here = "hf_SECRETxyz", tmp_path / "a b's $(touch RAN)"
    here.mkdir()
    run, log = here / "o'brien $(touch RAN) `touch RAN`", tmp_path / "log"
    command = ["env", "-C", str(here), *dmd_train(shards, run, "--hosts", str(two.file), *ENDLESS)]
    root = str(Path(__file__).parents[2])
    wrapper = two.start(0, log, command, HF_TOKEN=token, HF_HOME="/tmp/$(touch RAN)", PYTHONPATH=root, **ssh)
    seen_words: set[str] = set()
    text = lambda: log.read_text(errors="replace")  # noqa: E731

    def trained() -> bool:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                seen_words.update(file.read_bytes().decode(errors="replace").split("\0"))
        return (run / "checkpoints" / "step_00000004").exists() or wrapper.poll() is not None

    until(trained, text)
    sockets = subprocess.run([*two.pair[0].inside, "ss", "-Hltn"], capture_output=True, text=True).stdout
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(PATIENCE) == STOPPED, text()
    assert not [word for word in seen_words if token in word]
    assert any(str(run) in word for word in seen_words)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert list(tmp_path.rglob("RAN")) == []
    assert not list(run.glob(".private-*"))
    listening = {line.split()[3].rpartition(":")[0] for line in sockets.splitlines()}
    assert two.pair[0].address in listening
    assert f"{two.pair[0].address}:29500" in sockets
    assert "*:29500" not in sockets
