"""Two hosts: network namespaces with their own interface and address, one rank each.

Needs root, `ip` (iproute2) and for ssh `sshd` and `pdsh`; in CI they are there.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts import Host, can_make_hosts, hosts
from tests.launch.ranks import PATIENCE, TINY, assert_bitwise, last
from tests.launch.test_launcher import ENDLESS
from tests.launch.test_stop import until

pytestmark = [
    pytest.mark.hosts, pytest.mark.multiproc, pytest.mark.slow,
    pytest.mark.skipif(not can_make_hosts, reason="needs root and iproute2"),
]  # fmt: skip
SAVES = "train.save_every=2"
LOST, STOPPED = 69, 75


@dataclass(frozen=True)
class Two:
    """The hosts and the file that lists them."""

    pair: tuple[Host, ...]
    file: Path

    def start(self, host: int, log: Path, command: list[str], **env: str) -> subprocess.Popen[bytes]:
        """Run a command on a host."""
        with log.open("wb") as file:
            return subprocess.Popen([*self.pair[host].inside, *command], stdout=file, stderr=file,
                                    env={**os.environ, "OMP_NUM_THREADS": "1", **env})  # fmt: skip


def dmd_train(shards: Path, run: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "dmd.cli", "train", "--data", str(shards), "--run", str(run)]
    return [*command, *TINY, SAVES, "train.collective_timeout=20", *arguments]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    file = tmp_path_factory.mktemp("hosts") / "hosts"
    with hosts(2) as pair:
        file.write_text("".join(f"{host.address} slots=1\n" for host in pair))
        yield Two(pair, file)


def per_host(
    two: Two, shards: Path, run: Path, *arguments: str
) -> tuple[list[subprocess.Popen[bytes]], list[Path]]:
    """One command per host, no ssh; the processes and their logs."""
    logs = [run.parent / f"log-{time.monotonic_ns()}-{host}" for host in range(2)]
    command = dmd_train(shards, run, "--hosts", str(two.file), *arguments)
    return [two.start(host, logs[host], [*command, "--host-rank", str(host)]) for host in range(2)], logs


def test_per_host_commands_a_cut_cable_and_back(two, shards, reference, tmp_path, capsys):
    run = tmp_path / "run"
    processes, logs = per_host(two, shards, run, *ENDLESS)
    text = lambda: "\n".join(log.read_text(errors="replace") for log in logs)  # noqa: E731
    until(lambda: (run / "checkpoints" / "step_00000004").exists(), text)
    cut = time.monotonic()
    two.pair[1].link("down")
    codes = [process.wait(PATIENCE) for process in processes]
    noticed = time.monotonic() - cut
    two.pair[1].link("up")
    assert codes == [LOST, LOST], text()
    for rank, log in enumerate(logs):
        assert f"rank {rank} on" in log.read_text(errors="replace")
        assert "lost the other ranks" in log.read_text(errors="replace")
    processes, logs = per_host(two, shards, run, "--resume", "4")
    assert [process.wait(PATIENCE) for process in processes] == [0, 0], text()
    assert_bitwise(run, reference(SAVES, ranks=2))
    with capsys.disabled():
        print(f"\na cut cable: both hosts ended {noticed:.1f} s after it, of 20 s that they may wait")


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
    servers = [two.start(host, tmp_path / f"sshd{host}", [sshd, "-D", "-f", str(tmp_path / "sshd_config")])
               for host in range(2)]  # fmt: skip
    yield {"PATH": f"{shim.parent}:{os.environ['PATH']}"}
    for server in servers:
        server.kill()
        server.wait()


def test_ssh_starts_all_hosts_and_carries_a_signal(two, ssh, shards, reference, tmp_path):
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
    assert two.pair[1].address in text()


def test_words_and_secrets_reach_the_ranks_alone(two, ssh, shards, tmp_path):
    """From a directory with spaces into a run directory that a shell would take apart; no process list tells the token,
    no file keeps it, and rank 0 listens on the address of the hostfile."""
    token, here = "hf_SECRETxyz", tmp_path / "a b's $(touch RAN)"
    here.mkdir()
    run, log = here / "o'brien $(touch RAN) `touch RAN`", tmp_path / "log"
    command = ["env", "-C", str(here), *dmd_train(shards, run, "--hosts", str(two.file), *ENDLESS)]
    root = str(Path(__file__).parents[2])
    wrapper = two.start(0, log, command, HF_TOKEN=token, HF_HOME="/tmp/$(touch RAN)", PYTHONPATH=root, **ssh)
    told: set[str] = set()
    text = lambda: log.read_text(errors="replace")  # noqa: E731

    def trained() -> bool:
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                told.update(file.read_bytes().decode(errors="replace").split("\0"))
        return (run / "checkpoints" / "step_00000004").exists() or wrapper.poll() is not None

    until(trained, text)
    sockets = subprocess.run([*two.pair[0].inside, "ss", "-Hltn"], capture_output=True, text=True).stdout
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(PATIENCE) == STOPPED, text()
    assert not [word for word in told if token in word]
    assert any(str(run) in word for word in told)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert list(tmp_path.rglob("RAN")) == []
    assert not list(run.glob(".private-*"))
    listening = {line.split()[3].rpartition(":")[0] for line in sockets.splitlines()}
    assert two.pair[0].address in listening
    assert f"{two.pair[0].address}:29500" in sockets
    assert "*:29500" not in sockets
