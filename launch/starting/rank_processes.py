"""How `dmd train` reaches ranks that its launcher has started: processes of this machine, or of other hosts by ssh."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import psutil

SCRIPT = Path(__file__).absolute().parents[1] / "train.py"
_REACHED = "dmd-reached"
_CONNECT_SECONDS = 20


class Reach(Protocol):
    """A way to the ranks of a launcher."""

    ranks_start_together: bool
    """Where one cannot be reached, none runs yet."""

    def signal(self, launcher: int, number: int) -> bool:
        """Signal the ranks that have not had this signal yet; returns whether all of them have it now."""

    def left(self, launcher: int) -> list[psutil.Process]:
        """Ranks on this machine that are still there."""


class Local:
    """Ranks in the process group of a launcher on this machine."""

    ranks_start_together = True

    def signal(self, launcher: int, number: int) -> bool:
        """As `Reach.signal`."""
        ranks = self.left(launcher)
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.send_signal(number)
        return bool(ranks)

    def left(self, launcher: int) -> list[psutil.Process]:
        """As `Reach.left`."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == launcher and process.cmdline()[2:3] == [str(SCRIPT)]:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                continue
        return found


class Remote:
    """Ranks that ssh has started.

    Args:
        hosts: names of all hosts.
        run: the run directory, as the ranks' command line has it.
        environment: what pdsh runs in.
    """

    ranks_start_together = False

    def __init__(self, hosts: list[str], run: str, environment: dict[str, str]) -> None:
        self._hosts, self._environment = hosts, environment
        pattern = f"^{re.escape(sys.executable)} -u {re.escape(str(SCRIPT))} .*--run {re.escape(run)} "
        self._pattern = shlex.quote(pattern)
        self._reached: dict[int, set[str]] = {}

    def signal(self, launcher: int, number: int) -> bool:
        """As `Reach.signal`; the launchers of several hosts start their ranks one after the other."""
        reached = self._reached.setdefault(number, set())
        missing = [host for host in self._hosts if host not in reached]
        of_this_host = "--ns $$ --nslist net"  # containers of one machine share processes, not the network
        kill = f"pkill -{number} {of_this_host} -f {self._pattern} && echo {_REACHED}"
        command = ["pdsh", "-R", "ssh", "-w", ",".join(missing), kill]
        answers = subprocess.run(command, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        for line in answers.stdout.decode(errors="replace").splitlines():
            host, _, said = line.partition(": ")
            if said == _REACHED:
                reached.add(host)
        return reached.issuperset(self._hosts)

    def left(self, launcher: int) -> list[psutil.Process]:
        """As `Reach.left`: none, they are elsewhere."""
        return []


def check_ssh(hosts: list[str], arguments: list[str]) -> None:
    """Raise ValueError unless ssh, with these arguments, gets into every host without a question. DeepSpeed asks the
    first one alone."""
    command = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={_CONNECT_SECONDS}", *arguments]
    asked = {
        host: subprocess.Popen(
            [*command, host, "true"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in hosts
    }
    reasons = {host: process.communicate()[1].strip().splitlines() for host, process in asked.items()}
    for host, process in asked.items():
        if process.returncode:
            why = reasons[host][-1].strip() if reasons[host] else f"ssh ended with exit code {process.returncode}"
            raise ValueError(f"ssh cannot reach {host} ({why}); `ssh {host} true` must work without a question")


def end_group(launcher: int) -> None:
    """Kill a launcher and all that is left of its process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher, signal.SIGKILL)
