"""Starts DeepSpeed's launcher for `launch/train.py`: on this machine, on this host's part of several, or through ssh.

What the stock launcher lacks is in `launch.starting.launcher`: signals reach every rank, nothing of it outlives this
process (`launch.supervision.supervise` watches for its death), and the exit code tells the cause.
"""

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from data_shards.places import Place
from dmd.kernels.backend import default_device
from launch.devices import keep_choice, num_gpus
from launch.network.ports import free_port
from launch.starting.collect import FromStderr, InMemory
from launch.starting.environment import REFUSED, forwarded
from launch.starting.launcher import Launcher
from launch.starting.private import DATA, handed_over, is_private, shell_word
from launch.starting.rank_layout import DEFAULT_PORT, RankLayout
from launch.starting.reach import SCRIPT, Local, Remote, check_ssh
from launch.supervision.ending import REPORTS, Ending
from launch.supervision.supervise import WRAPPER


def default_ranks() -> int:
    """One rank per GPU of this machine; one where ranks run on the CPU."""
    return max(1, num_gpus())


def launcher_command(layout: RankLayout, arguments: list[str]) -> list[str]:
    """The command that starts the ranks of a layout with these arguments.

    Raises:
        ValueError: ssh is asked for and pdsh is not installed.
    """
    if layout.hosts is None:
        where = ["--num_accelerators", str(layout.ranks), "--master_port", str(layout.port or free_port())]
    else:
        where = ["--hostfile", str(layout.hosts.path), "--master_addr", layout.hosts.first]
        where += ["--master_port", str(layout.port or DEFAULT_PORT)]
        if layout.host_rank is not None:
            where += ["--no_ssh", "--node_rank", str(layout.host_rank)]
        elif not (shutil.which("pdsh") and shutil.which("ssh")):
            raise ValueError("--hosts without --host-rank needs pdsh and ssh; install them, or use --host-rank")
        elif layout.ssh_port is not None:
            where += ["--ssh_port", str(layout.ssh_port)]
    if layout.by_ssh:
        for path in (sys.executable, str(SCRIPT)):
            if shlex.quote(path) != path:
                raise ValueError(f"{path!r} has a character that a remote shell would change; install it elsewhere")
        arguments = [shell_word(word) for word in arguments]
    where += ["--log_level", "critical"]  # a rank that was stopped is an error to it, and the last line
    return [sys.executable, "-m", "deepspeed.launcher.runner", *where, str(SCRIPT), *arguments]


def run_launcher(
    layout: RankLayout, arguments: list[str], data: Place, *, patience: float, refused: str = ""
) -> Ending:
    """Run the training script on all ranks of a layout; returns the ending that tells why they ended.

    Args:
        patience: seconds that ranks whose launcher has died get to end by themselves.
        refused: why they cannot train; they only tell the ranks of other hosts.

    Raises:
        ValueError: what `launcher_command` refuses, or what cannot reach other hosts.
    """
    environment = {**os.environ, **({DATA: data.address} if data.has_secret else {})}
    if not layout.by_ssh:  # other hosts may have GPUs where this one has none
        keep_choice(environment)
        if default_device().type == "cpu":
            environment["DS_ACCELERATOR"] = "cpu"
        here = InMemory()
        environment |= {WRAPPER: str(os.getpid()), REPORTS: here.where, **({REFUSED: refused} if refused else {})}
        launcher = Launcher(Local(), here, layout.rank_numbers, patience)
        return launcher.run(launcher_command(layout, arguments), environment)
    assert layout.hosts is not None
    environment["PYTHONPATH"] = _python_path(environment)
    there, command = FromStderr(), launcher_command(layout, arguments)
    port = "" if layout.ssh_port is None else f" -p {layout.ssh_port}"
    ssh_arguments = environment.get("PDSH_SSH_ARGS_APPEND", "") + port
    check_ssh(list(layout.hosts.slots), shlex.split(ssh_arguments))
    chosen = forwarded(environment) | {name: environment[name] for name in (DATA,) if name in environment}
    private = {name: value for name, value in chosen.items() if is_private(name, value)}
    environment = {name: value for name, value in environment.items() if name not in private}
    run = arguments[arguments.index("--run") + 1]
    with (
        handed_over(Path(run), private, layout.hosts.num_ranks) as token,
        tempfile.NamedTemporaryFile("w", prefix="dmd-environment-") as file,
    ):
        carried = {**forwarded(environment), **token, REPORTS: there.where}
        file.writelines(f"{name}={value}\n" for name, value in carried.items())
        file.flush()
        ssh = {**environment, "PDSH_SSH_ARGS_APPEND": ssh_arguments}
        launcher = Launcher(Remote(list(layout.hosts.slots), run, ssh), there, layout.rank_numbers, patience)
        # DeepSpeed writes its own working directory, as it is, into the remote command.
        start = os.getcwd() if shlex.quote(os.getcwd()) == os.getcwd() else "/"
        return launcher.run(["env", "-C", start, *command], {**environment, "DS_ENV_FILE": file.name})


def _python_path(environment: dict[str, str]) -> str:
    """PYTHONPATH for ranks that start in another directory: this code first, then what is there, absolute."""
    there = [os.path.abspath(part) for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.pathsep.join(dict.fromkeys([str(SCRIPT.parent.parent), *there]))
