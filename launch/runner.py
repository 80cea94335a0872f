"""Starts DeepSpeed's launcher for `launch/train.py`: on this machine, on this host's part of several, or through ssh.

What the stock launcher lacks is here: SIGINT and SIGTERM reach every rank, and nothing of it outlives this process
(`launch.supervise` watches for its death).
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from data_shards.places import Place as Shards
from dmd.kernels.backend import default_device
from launch.devices import keep_choice, num_gpus
from launch.environment import forwarded
from launch.exit_codes import LOST, SIGNALLED
from launch.hosts import Hosts
from launch.private import DATA, handed_over, is_private, shell_word

SCRIPT = Path(__file__).with_name("train.py").absolute()
SWEEP_SECONDS = 40
"""Time for ranks whose launcher has died to write a checkpoint, before they are killed."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where ranks run."""

    ranks: int
    """On this machine, where `hosts` is None."""
    hosts: Hosts | None = None
    host_rank: int | None = None
    """This host's line in the hostfile, where every host gets its own command; None: ssh starts all of them."""
    port: int | None = None
    """Of rank 0's host; None: a free one on this machine, 29500 between hosts."""
    ssh_port: int | None = None

    @property
    def by_ssh(self) -> bool:
        """Whether ranks are started through ssh."""
        return self.hosts is not None and self.host_rank is None


def default_ranks() -> int:
    """One rank per GPU of this machine; one where ranks run on the CPU."""
    return max(1, num_gpus())


def launcher_command(place: Place, arguments: list[str]) -> list[str]:
    """The command that starts the ranks of a place with these arguments.

    Raises:
        ValueError: ssh is asked for and pdsh is not installed.
    """
    if place.hosts is None:
        where = ["--num_accelerators", str(place.ranks), "--master_port", str(place.port or free_port())]
    else:
        where = ["--hostfile", str(place.hosts.path), "--master_addr", place.hosts.first]
        where += ["--master_port", str(place.port or 29500)]
        if place.host_rank is not None:
            where += ["--no_ssh", "--node_rank", str(place.host_rank)]
        elif not (shutil.which("pdsh") and shutil.which("ssh")):
            raise ValueError("--hosts without --host-rank needs pdsh and ssh; install them, or use --host-rank")
        elif place.ssh_port is not None:
            where += ["--ssh_port", str(place.ssh_port)]
    if place.by_ssh:
        for path in (sys.executable, str(SCRIPT)):
            if shlex.quote(path) != path:
                raise ValueError(f"{path!r} has a character that a remote shell would change; install it elsewhere")
        arguments = [shell_word(word) for word in arguments]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *where, str(SCRIPT), *arguments]


def run_launcher(place: Place, arguments: list[str], data: Shards) -> int:
    """Run the training script on all ranks of a place; returns its exit code (`launch.exit_codes`).

    Raises:
        ValueError: what `launcher_command` refuses, or what cannot reach other hosts.
    """
    environment = {**os.environ, **({DATA: data.address} if data.has_secret else {})}
    if not place.by_ssh:  # other hosts may have GPUs where this one has none
        keep_choice(environment)
        if default_device().type == "cpu":
            environment["DS_ACCELERATOR"] = "cpu"
        return _run(launcher_command(place, arguments), {**environment, "DMD_WRAPPER": str(os.getpid())}, _signal_local)
    assert place.hosts is not None
    hosts = ",".join(place.hosts.slots)
    environment["PYTHONPATH"] = _python_path(environment)
    chosen = forwarded(environment) | {name: environment[name] for name in (DATA,) if name in environment}
    private = {name: value for name, value in chosen.items() if is_private(name, value)}
    environment = {name: value for name, value in environment.items() if name not in private}
    run_path = Path(arguments[arguments.index("--run") + 1])
    command = launcher_command(place, arguments)
    with (
        handed_over(run_path, private, place.hosts.num_ranks) as token,
        tempfile.NamedTemporaryFile("w", prefix="dmd-environment-") as file,
    ):
        file.writelines(f"{name}={value}\n" for name, value in {**forwarded(environment), **token}.items())
        file.flush()
        port = "" if place.ssh_port is None else f" -p {place.ssh_port}"
        ssh = {**environment, "PDSH_SSH_ARGS_APPEND": environment.get("PDSH_SSH_ARGS_APPEND", "") + port}

        def signal_remote(launcher: int, number: int) -> bool:
            run = re.escape(str(run_path))
            pattern = shlex.quote(f"^{re.escape(sys.executable)} -u {re.escape(str(SCRIPT))} .*--run {run} ")
            of_this_host = "--ns $$ --nslist net"  # containers of one machine share processes, not the network
            kill = ["pdsh", "-R", "ssh", "-w", hosts, f"pkill -{number} {of_this_host} -f {pattern}"]
            return subprocess.run(kill, env=ssh, stderr=subprocess.DEVNULL).returncode == 0

        # DeepSpeed writes its own working directory, as it is, into the remote command.
        start = os.getcwd() if shlex.quote(os.getcwd()) == os.getcwd() else "/"
        return _run(["env", "-C", start, *command], {**environment, "DS_ENV_FILE": file.name}, signal_remote)


def _python_path(environment: dict[str, str]) -> str:
    """PYTHONPATH for ranks that start in another directory: this code first, then what is there, absolute."""
    there = [os.path.abspath(part) for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.pathsep.join(dict.fromkeys([str(SCRIPT.parent.parent), *there]))


def _run(command: list[str], environment: dict[str, str], reach: Callable[[int, int], bool]) -> int:
    """Run the launcher, carrying signals to the ranks; a second one of a kind ends everything at once.

    Args:
        reach: sends a signal to the ranks of a launcher (its process id); says whether there were any.
    """
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    asked: Counter[int] = Counter()

    def forward(number: int, frame: object) -> None:
        asked[number] += 1
        if asked[number] > 1:
            reach(process.pid, signal.SIGKILL)
            os.killpg(process.pid, signal.SIGKILL)
        elif not reach(process.pid, number):
            os.killpg(process.pid, number)  # no rank runs yet

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
        abandoned = _sweep(process.pid)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if abandoned:
        print("dmd train: error: the launcher has died; the same command continues", file=sys.stderr, flush=True)
        return LOST
    return code if code >= 0 else SIGNALLED - code


def _ranks(group: int) -> list[psutil.Process]:
    """The rank processes in the process group of a launcher on this machine."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.cmdline()[2:3] == [str(SCRIPT)]:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
            continue
    return found


def _signal_local(launcher: int, number: int) -> bool:
    ranks = _ranks(launcher)
    for rank in ranks:
        rank.send_signal(number)
    return bool(ranks)


def _sweep(group: int) -> bool:
    """Wait for ranks that a dead launcher has left behind, which stop by themselves, and end what is left after that.

    Returns:
        whether there were any. The stock launcher's own exit code is 0 where a signal killed its child.
    """
    ranks = _ranks(group)
    psutil.wait_procs(ranks, timeout=SWEEP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    return bool(ranks)


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
