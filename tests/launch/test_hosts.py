"""Two hosts: network namespaces with their own interface and address, one rank each, joined by a veth pair.

Needs root, `ip` (iproute2) and for ssh `sshd` and `pdsh`; in CI they are there.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.ranks import PATIENCE, TINY, assert_bitwise, last
from tests.launch.test_launcher import ENDLESS
from tests.launch.test_stop import until

pytestmark = [pytest.mark.multiproc, pytest.mark.hosts, pytest.mark.slow]
SAVES = "train.save_every=2"
ADDRESSES = ("10.213.7.1", "10.213.7.2")
LOST, STOPPED = 69, 75


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


class Hosts:
    """The two namespaces and what was started in them."""

    def __init__(self, folder: Path) -> None:
        self.names = [f"dmd{os.getpid()}{side}" for side in "ab"]
        self.folder = folder
        self.file = folder / "hosts"
        self.file.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))

    def up(self) -> str:
        """Build them; returns why that is impossible here, or nothing."""
        if os.geteuid() != 0 or not shutil.which("ip"):
            return "network namespaces need root and iproute2"
        for name in self.names:
            made = ip("netns", "add", name)
            if made.returncode:
                return f"no network namespace can be made here: {made.stderr.strip()}"
        ends = [(f"va{os.getpid()}", "left0"), (f"vb{os.getpid()}", "right0")]
        made = ip("link", "add", ends[0][0], "type", "veth", "peer", "name", ends[1][0])
        if made.returncode:
            return f"no veth pair can be made here: {made.stderr.strip()}"
        for name, (end, inside), address in zip(self.names, ends, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name)
            for command in (f"link set {end} name {inside}", f"addr add {address}/24 dev {inside}",
                            f"link set {inside} up", "link set lo up"):  # fmt: skip
                done = ip("-n", name, *command.split())
                assert done.returncode == 0, done.stderr
        return ""

    def down(self) -> None:
        for name in self.names:
            for pid in ip("netns", "pids", name).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
            ip("netns", "del", name)

    def link(self, state: str) -> None:
        """Set host b's end of the cable up or down."""
        assert ip("-n", self.names[1], "link", "set", "right0", state).returncode == 0

    def start(self, host: int, log: Path, command: list[str], **env: str) -> subprocess.Popen[bytes]:
        """Run a command on a host."""
        whole = ["ip", "netns", "exec", self.names[host], *command]
        with log.open("wb") as file:
            return subprocess.Popen(whole, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1", **env})


def dmd_train(shards: Path, run: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", "dmd.cli", "train", "--data", str(shards), "--run", str(run)]
    return [*command, *TINY, SAVES, "train.collective_timeout=20", *arguments]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory) -> Iterator[Hosts]:
    made = Hosts(tmp_path_factory.mktemp("hosts"))
    try:
        if reason := made.up():
            pytest.skip(reason)
        yield made
    finally:
        made.down()


def per_host(
    hosts: Hosts, shards: Path, run: Path, *arguments: str
) -> tuple[list[subprocess.Popen[bytes]], list[Path]]:
    """One command per host, no ssh; the processes and their logs."""
    logs = [run.parent / f"log-{time.monotonic_ns()}-{host}" for host in range(2)]
    command = dmd_train(shards, run, "--hosts", str(hosts.file), *arguments)
    return [hosts.start(host, logs[host], [*command, "--host-rank", str(host)]) for host in range(2)], logs


def test_per_host_commands_a_cut_cable_and_back(hosts, shards, reference, tmp_path, capsys):
    run = tmp_path / "run"
    processes, logs = per_host(hosts, shards, run, *ENDLESS)
    text = lambda: "\n".join(log.read_text(errors="replace") for log in logs)  # noqa: E731
    until(lambda: (run / "checkpoints" / "step_00000004").exists(), text)
    cut = time.monotonic()
    hosts.link("down")
    codes = [process.wait(PATIENCE) for process in processes]
    noticed = time.monotonic() - cut
    hosts.link("up")
    assert codes == [LOST, LOST], text()
    for rank, log in enumerate(logs):
        assert f"rank {rank} on" in log.read_text(errors="replace")
        assert "lost the other ranks" in log.read_text(errors="replace")
    processes, logs = per_host(hosts, shards, run, "--resume", "4")
    assert [process.wait(PATIENCE) for process in processes] == [0, 0], text()
    assert_bitwise(run, reference(SAVES, ranks=2))
    with capsys.disabled():
        print(f"\na cut cable: both hosts ended {noticed:.1f} s after it, of 20 s that they may wait")


@pytest.fixture
def ssh(hosts: Hosts, tmp_path: Path) -> Iterator[dict[str, str]]:
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
    servers = [hosts.start(host, tmp_path / f"sshd{host}", [sshd, "-D", "-f", str(tmp_path / "sshd_config")])
               for host in range(2)]  # fmt: skip
    yield {"PATH": f"{shim.parent}:{os.environ['PATH']}"}
    for server in servers:
        server.kill()
        server.wait()


def test_ssh_starts_all_hosts_and_carries_a_signal(hosts, ssh, shards, reference, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    text = lambda: log.read_text(errors="replace")  # noqa: E731
    wrapper = hosts.start(0, log, dmd_train(shards, run, "--hosts", str(hosts.file), *ENDLESS), **ssh)
    until(lambda: (run / "checkpoints" / "step_00000004").exists() or wrapper.poll() is not None, text)
    wrapper.send_signal(signal.SIGTERM)
    assert wrapper.wait(PATIENCE) == STOPPED, text()
    assert f"stopped at step {last(run).step}" in text()
    wrapper = hosts.start(0, log, dmd_train(shards, run, "--hosts", str(hosts.file), "--resume", "4"), **ssh)
    assert wrapper.wait(PATIENCE) == 0, text()
    assert_bitwise(run, reference(SAVES, ranks=2))
    assert "10.213.7.2" in text()
