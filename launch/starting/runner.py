"""Starts DeepSpeed's launcher for `launch/train.py`: on this machine, on this host's part of several, or through ssh.

What the stock launcher lacks is in `launch.starting.launcher`: signals reach every rank, no rank outlives this process
(`launch.supervision.supervise` watches for its death), and the exit code says the cause.
"""

import base64
import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from data_shards.places import Place
from dmd.kernels.backend import default_device
from launch.devices import num_gpus, save_visible_devices
from launch.network.ports import free_port
from launch.starting.ending_collectors import MemoryCollector, StderrCollector
from launch.starting.environment import REJECTION, forwarded
from launch.starting.launcher import Launcher
from launch.starting.private_variables import DATA, is_private, private_files, shell_word
from launch.starting.rank_layout import DEFAULT_PORT, RankLayout
from launch.starting.rank_processes import SCRIPT, LocalRanks, RemoteRanks, check_ssh
from launch.supervision.ending import REPORTS, Ending
from launch.supervision.supervise import WRAPPER_PID

_QUIET = ("--log_level=critical",)
"""Else the launcher's last line calls a rank that was stopped an error."""


def default_ranks() -> int:
    """One rank per GPU of this machine; one where ranks run on the CPU."""
    return max(1, num_gpus())


def launcher_command(layout: RankLayout, arguments: list[str]) -> list[str]:
    """The command that starts the ranks of a layout with these arguments.

    DeepSpeed's launcher has two parts: `runner` reads the hostfile and starts `launch` on each host, which starts the
    ranks there. Where ranks are on this host alone, `launch` is called as the runner does: the runner would take two
    seconds to import torch.

    Raises:
        ValueError: ssh is asked for and pdsh is not installed.
    """
    if layout.by_ssh:
        return _command_by_ssh(layout, arguments)
    if layout.hosts is None:
        slots, address, port = {"localhost": layout.ranks}, "127.0.0.1", layout.port or free_port()
    else:
        slots, address, port = layout.hosts.slots, layout.hosts.first, layout.port or DEFAULT_PORT
    devices = {host: list(range(ranks)) for host, ranks in slots.items()}
    options = [
        f"--world_info={base64.urlsafe_b64encode(json.dumps(devices).encode()).decode()}",
        f"--master_addr={address}",
        f"--master_port={port}",
        f"--node_rank={layout.host_rank or 0}",
        *_QUIET,
    ]
    return [sys.executable, "-u", "-m", "deepspeed.launcher.launch", *options, str(SCRIPT), *arguments]


def _command_by_ssh(layout: RankLayout, arguments: list[str]) -> list[str]:
    assert layout.hosts is not None
    if not (shutil.which("pdsh") and shutil.which("ssh")):
        raise ValueError("--hosts without --host-rank needs pdsh and ssh; install them, or use --host-rank")
    for path in (sys.executable, str(SCRIPT)):
        if shlex.quote(path) != path:
            raise ValueError(f"{path!r} has a character that a remote shell would change; install it elsewhere")
    options = ["--hostfile", str(layout.hosts.path), "--master_addr", layout.hosts.first]
    options += ["--master_port", str(layout.port or DEFAULT_PORT), *_QUIET]
    if layout.ssh_port is not None:
        options += ["--ssh_port", str(layout.ssh_port)]
    words = [shell_word(word) for word in arguments]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *options, str(SCRIPT), *words]


def run_launcher(
    layout: RankLayout, arguments: list[str], data: Place, *, patience: float, rejection: str = ""
) -> Ending:
    """Run the training script on all ranks of a layout; returns the ending that says why they ended.

    Args:
        patience: seconds that ranks get to end by themselves after their launcher has died.
        rejection: why they cannot train; they only report it to the ranks of other hosts.

    Raises:
        ValueError: as `launcher_command`, or something that cannot be sent to other hosts.
    """
    environment = {**os.environ, **({DATA: data.address} if data.has_secret else {})}
    if layout.by_ssh:
        return _run_by_ssh(layout, arguments, environment, patience=patience)
    save_visible_devices(environment)
    if default_device().type == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    collector = MemoryCollector()
    environment |= {WRAPPER_PID: str(os.getpid()), REPORTS: collector.address}
    if rejection:
        environment[REJECTION] = rejection
    launcher = Launcher(LocalRanks(), collector, layout.rank_numbers, patience=patience)
    return launcher.run(launcher_command(layout, arguments), environment)


def _run_by_ssh(layout: RankLayout, arguments: list[str], environment: dict[str, str], *, patience: float) -> Ending:
    """Run the ranks of all hosts. Each host chooses its devices: it may have GPUs where this one has none."""
    assert layout.hosts is not None
    environment["PYTHONPATH"] = _python_path(environment)
    collector = StderrCollector()
    command = launcher_command(layout, arguments)
    port = "" if layout.ssh_port is None else f" -p {layout.ssh_port}"
    ssh_arguments = environment.get("PDSH_SSH_ARGS_APPEND", "") + port
    check_ssh(list(layout.hosts.slots), shlex.split(ssh_arguments))
    chosen = forwarded(environment) | {name: environment[name] for name in (DATA,) if name in environment}
    private = {name: value for name, value in chosen.items() if is_private(name, value)}
    environment = {name: value for name, value in environment.items() if name not in private}
    run = arguments[arguments.index("--run") + 1]
    with (
        private_files(Path(run), private, layout.hosts.num_ranks) as token,
        tempfile.NamedTemporaryFile("w", prefix="dmd-environment-") as file,
    ):
        for_ranks = {**forwarded(environment), **token, REPORTS: collector.address}
        file.writelines(f"{name}={value}\n" for name, value in for_ranks.items())
        file.flush()
        ranks = RemoteRanks(list(layout.hosts.slots), run, {**environment, "PDSH_SSH_ARGS_APPEND": ssh_arguments})
        launcher = Launcher(ranks, collector, layout.rank_numbers, patience=patience)
        # DeepSpeed writes its own working directory, unquoted, into the remote command.
        start = os.getcwd() if shlex.quote(os.getcwd()) == os.getcwd() else "/"
        return launcher.run(["env", "-C", start, *command], {**environment, "DS_ENV_FILE": file.name})


def _python_path(environment: dict[str, str]) -> str:
    """PYTHONPATH for ranks that start in another directory: this code, then the inherited one in absolute paths."""
    inherited = [os.path.abspath(part) for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.pathsep.join(dict.fromkeys([str(SCRIPT.parent.parent), *inherited]))
