"""The processes of ranks, as `dmd train` signals them: on this machine, or on other hosts through ssh."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import psutil

SCRIPT = Path(__file__).absolute().parents[1] / "train.py"
_SIGNALLED = "dmd-signalled"
_CONNECT_SECONDS = 20


class RankProcesses(Protocol):
    """The ranks of a launcher."""

    ranks_start_together: bool
    """Whether no rank runs yet where one cannot be signalled."""

    def signal(self, launcher_pid: int, number: int) -> bool:
        """Signal the ranks that have not had this signal yet; returns whether all of them have it now."""

    def remaining(self, launcher_pid: int) -> list[psutil.Process]:
        """Ranks on this machine that still run."""


class LocalRanks:
    """Ranks in the process group of a launcher on this machine."""

    ranks_start_together = True

    def signal(self, launcher_pid: int, number: int) -> bool:
        """As `RankProcesses.signal`."""
        ranks = self.remaining(launcher_pid)
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(number)
        return bool(ranks)

    def remaining(self, launcher_pid: int) -> list[psutil.Process]:
        """As `RankProcesses.remaining`."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == launcher_pid and process.cmdline()[2:3] == [str(SCRIPT)]:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                continue
        return found


class RemoteRanks:
    """Ranks that ssh has started.

    Args:
        hosts: names of all hosts.
        run: the run directory, as the ranks' command line has it.
        environment: of pdsh.
    """

    ranks_start_together = False

    def __init__(self, hosts: list[str], run: str, environment: dict[str, str]) -> None:
        self._hosts = hosts
        self._environment = environment
        pattern = f"^{re.escape(sys.executable)} -u {re.escape(str(SCRIPT))} .*--run {re.escape(run)} "
        self._pattern = shlex.quote(pattern)
        self._signalled: dict[int, set[str]] = {}

    def signal(self, launcher_pid: int, number: int) -> bool:
        """As `RankProcesses.signal`; the launchers of several hosts start their ranks one after the other."""
        signalled = self._signalled.setdefault(number, set())
        missing = [host for host in self._hosts if host not in signalled]
        same_host = "--ns $$ --nslist net"  # containers of one machine share processes, not the network
        kill = f"pkill -{number} {same_host} -f {self._pattern} && echo {_SIGNALLED}"
        command = ["pdsh", "-R", "ssh", "-w", ",".join(missing), kill]
        answers = subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for line in answers.stdout.decode(errors="replace").splitlines():
            host, _, answer = line.partition(": ")
            if answer == _SIGNALLED:
                signalled.add(host)
        return signalled.issuperset(self._hosts)

    def remaining(self, launcher_pid: int) -> list[psutil.Process]:
        """As `RankProcesses.remaining`: none, they are elsewhere."""
        return []


class HostUnreachable(ValueError):
    """ssh does not reach a host."""


def unreachable(hosts: Iterable[str], arguments: str) -> dict[str, str]:
    """The hosts that ssh, with these further arguments, does not reach without a prompt, each with the reason."""
    connect = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    command = ["ssh", *connect, *shlex.split(arguments)]
    processes = {
        host: subprocess.Popen(
            [*command, host, "true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in hosts
    }
    reasons = {host: process.communicate()[1].strip().splitlines() for host, process in processes.items()}
    return {
        host: reasons[host][-1].strip() if reasons[host] else f"ssh ended with exit code {process.returncode}"
        for host, process in processes.items()
        if process.returncode
    }


def check_ssh(hosts: Iterable[str], arguments: str) -> None:
    """Raise HostUnreachable unless ssh reaches every host (`unreachable`). DeepSpeed checks only the first one."""
    for host, why in unreachable(hosts, arguments).items():
        raise HostUnreachable(f"ssh cannot reach {host} ({why}); `ssh {host} true` must work without a question")


def kill_group(launcher_pid: int) -> None:
    """Kill the process group of a launcher."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher_pid, signal.SIGKILL)
