"""Starts DeepSpeed's launcher for `launch/train.py`: on this machine, on this host's part of several, or through ssh.

What the stock launcher lacks is in `launch.launcher`: signals reach every rank, nothing of it outlives this process
(`launch.supervise` watches for its death), and the exit code tells the cause.
"""

import os
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from data_shards.places import Place as Shards
from dmd.kernels.backend import default_device
from launch.collect import FromStderr, InMemory
from launch.devices import keep_choice, num_gpus
from launch.ending import REPORTS, Ending
from launch.environment import REFUSED, forwarded
from launch.hosts import Hosts
from launch.launcher import Launcher
from launch.ports import free_port
from launch.private import DATA, handed_over, is_private, shell_word
from launch.reach import SCRIPT, Local, Remote, check_ssh
from launch.supervise import WRAPPER

DEFAULT_PORT = 29500
"""Of rank 0's host, where several hosts have to know it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where ranks run."""

    ranks: int
    """On this machine, where `hosts` is None."""
    hosts: Hosts | None = None
    host_rank: int | None = None
    """This host's line in the hostfile, where every host gets its own command; None: ssh starts all of them."""
    port: int | None = None
    """Of rank 0's host; None: a free one on this machine, DEFAULT_PORT between hosts."""
    ssh_port: int | None = None

    @property
    def by_ssh(self) -> bool:
        """Whether ranks are started through ssh."""
        return self.hosts is not None and self.host_rank is None

    @property
    def rank_numbers(self) -> range:
        """The ranks that are started from here."""
        if self.hosts is None:
            return range(self.ranks)
        slots = list(self.hosts.slots.values())
        if self.host_rank is None:
            return range(sum(slots))
        first = sum(slots[: self.host_rank])
        return range(first, first + slots[self.host_rank])


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
        where += ["--master_port", str(place.port or DEFAULT_PORT)]
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
    where += ["--log_level", "critical"]  # a rank that was stopped is an error to it, and the last line
    return [sys.executable, "-m", "deepspeed.launcher.runner", *where, str(SCRIPT), *arguments]


def run_launcher(place: Place, arguments: list[str], data: Shards, *, patience: float, refused: str = "") -> Ending:
    """Run the training script on all ranks of a place; returns the ending that tells why they ended.

    Args:
        patience: seconds that ranks whose launcher has died get to end by themselves.
        refused: why they cannot train; they only tell the ranks of other hosts.

    Raises:
        ValueError: what `launcher_command` refuses, or what cannot reach other hosts.
    """
    environment = {**os.environ, **({DATA: data.address} if data.has_secret else {})}
    if not place.by_ssh:  # other hosts may have GPUs where this one has none
        keep_choice(environment)
        if default_device().type == "cpu":
            environment["DS_ACCELERATOR"] = "cpu"
        here = InMemory()
        environment |= {WRAPPER: str(os.getpid()), REPORTS: here.where, **({REFUSED: refused} if refused else {})}
        launcher = Launcher(Local(), here, place.rank_numbers, patience)
        return launcher.run(launcher_command(place, arguments), environment)
    assert place.hosts is not None
    environment["PYTHONPATH"] = _python_path(environment)
    there, command = FromStderr(), launcher_command(place, arguments)
    port = "" if place.ssh_port is None else f" -p {place.ssh_port}"
    ssh_arguments = environment.get("PDSH_SSH_ARGS_APPEND", "") + port
    check_ssh(list(place.hosts.slots), shlex.split(ssh_arguments))
    chosen = forwarded(environment) | {name: environment[name] for name in (DATA,) if name in environment}
    private = {name: value for name, value in chosen.items() if is_private(name, value)}
    environment = {name: value for name, value in environment.items() if name not in private}
    run = arguments[arguments.index("--run") + 1]
    with (
        handed_over(Path(run), private, place.hosts.num_ranks) as token,
        tempfile.NamedTemporaryFile("w", prefix="dmd-environment-") as file,
    ):
        carried = {**forwarded(environment), **token, REPORTS: there.where}
        file.writelines(f"{name}={value}\n" for name, value in carried.items())
        file.flush()
        ssh = {**environment, "PDSH_SSH_ARGS_APPEND": ssh_arguments}
        launcher = Launcher(Remote(list(place.hosts.slots), run, ssh), there, place.rank_numbers, patience)
        # DeepSpeed writes its own working directory, as it is, into the remote command.
        start = os.getcwd() if shlex.quote(os.getcwd()) == os.getcwd() else "/"
        return launcher.run(["env", "-C", start, *command], {**environment, "DS_ENV_FILE": file.name})


def _python_path(environment: dict[str, str]) -> str:
    """PYTHONPATH for ranks that start in another directory: this code first, then what is there, absolute."""
    there = [os.path.abspath(part) for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.pathsep.join(dict.fromkeys([str(SCRIPT.parent.parent), *there]))
