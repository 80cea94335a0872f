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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from data_shards.places import Place
from data_shards.terminal import WRAPPER_PID, clear
from dmd.exit_codes import STOPPED, STORAGE, USER_ERROR
from dmd.kernels.backend import default_device
from launch.devices import num_gpus, save_visible_devices
from launch.network.interfaces import LOOPBACK
from launch.network.ports import reserved_port
from launch.starting.ending_collectors import MemoryCollector, StderrCollector
from launch.starting.environment import REJECTION, forwarded
from launch.starting.launcher import Launcher
from launch.starting.private_variables import DATA, is_private, private_files, shell_word
from launch.starting.rank_layout import DEFAULT_PORT, RankLayout
from launch.starting.rank_processes import SCRIPT, LocalRanks, RemoteRanks, check_ssh
from launch.supervision.ending import REPORTS, Ending
from launch.supervision.launcher_log import LOG, SSH_LOG, LogTail

_QUIET = ("--log_level=critical",)
"""Else the launcher's last line calls a rank that was stopped an error."""
EXPLAINED = (0, STOPPED, USER_ERROR, STORAGE)
"""Exit codes whose messages say everything."""
_KEEP_ALIVE = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
"""A host that does not answer ssh for 15 seconds counts as gone; by default ssh waits for hours."""


@dataclass(frozen=True, kw_only=True)
class LauncherEnd:
    """How a run of the launcher ended."""

    ending: Ending
    """That of the rank that is the cause."""
    stop_requested: bool
    """Whether somebody asked this process to stop."""


def default_ranks() -> int:
    """One rank per GPU of this machine; one where ranks run on the CPU."""
    return max(1, num_gpus())


def launcher_command(layout: RankLayout, arguments: list[str]) -> list[str]:
    """The command that starts the ranks of a layout, which names a port on this host, with these arguments.

    DeepSpeed's launcher has two parts: `runner` reads the hostfile and starts `launch` on each host, which starts the
    ranks there. Where ranks are on this host alone, `launch` is called as the runner does (by `quiet_launch`): the
    runner would take two seconds to import torch.

    Raises:
        ValueError: ssh is asked for and pdsh is not installed.
    """
    if layout.by_ssh:
        return _command_by_ssh(layout, arguments)
    if layout.hosts is None:
        assert layout.port is not None, "chosen where the ranks are started"
        slots, address, port = {"localhost": layout.ranks}, LOOPBACK, layout.port
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
    return [sys.executable, "-u", "-m", "launch.starting.quiet_launch", *options, str(SCRIPT), *arguments]


def _command_by_ssh(layout: RankLayout, arguments: list[str]) -> list[str]:
    assert layout.hosts is not None
    if not (shutil.which("pdsh") and shutil.which("ssh")):
        raise ValueError("--hosts without --host-rank needs pdsh and ssh; install them, or use --host-rank")
    for path in (sys.executable, str(SCRIPT)):
        if shlex.quote(path) != path:
            raise ValueError(f"{path!r} has a character that a remote shell would change; install it elsewhere")
    options = ["--hostfile", str(layout.hosts.path), "--master_addr", layout.hosts.first]
    # A single host would not be reached by ssh without the last one: DeepSpeed takes it for this machine.
    options += ["--master_port", str(layout.port or DEFAULT_PORT), *_QUIET, "--force_multi"]
    if layout.ssh_port is not None:
        options += ["--ssh_port", str(layout.ssh_port)]
    words = [shell_word(word) for word in arguments]
    return [sys.executable, "-m", "deepspeed.launcher.runner", *options, str(SCRIPT), *words]


def run_launcher(
    layout: RankLayout,
    arguments: list[str],
    data: Place,
    *,
    patience: float,
    rejection: str = "",
    about: Mapping[str, str] | None = None,
) -> LauncherEnd:
    """Run the training script on all ranks of a layout; returns the ending that says why they ended.

    Args:
        patience: seconds that ranks get to end by themselves after their launcher has died.
        rejection: why they cannot train; they only report it to the ranks of other hosts.
        about: further environment variables of every rank.

    Raises:
        ValueError: as `launcher_command`, or something that cannot be sent to other hosts.
        HostUnreachable: ssh does not reach a host.
    """
    environment = {**os.environ, **(about or {}), **({DATA: data.address} if data.has_secret else {})}
    if layout.by_ssh:
        return _run_by_ssh(layout, arguments, environment, patience=patience)
    save_visible_devices(environment)
    if default_device().type == "cpu":
        environment["DS_ACCELERATOR"] = "cpu"
    collector = MemoryCollector()
    run = _run_directory(arguments)
    environment |= {WRAPPER_PID: str(os.getpid()), REPORTS: collector.address, LOG: run}
    if rejection:
        environment[REJECTION] = rejection
    launcher = Launcher(LocalRanks(), collector, layout.rank_numbers, patience=patience)
    host = layout.host_rank or 0
    tail = LogTail(Path(run), range(host, host + 1))
    with _with_port(layout) as layout:
        ending = launcher.run(launcher_command(layout, arguments), environment)
    return _end_of(launcher, ending, tail)


def _end_of(launcher: Launcher, ending: Ending, tail: LogTail) -> LauncherEnd:
    """The end of a run of the launcher; shows what libraries said where that may be the reason."""
    if ending.code not in EXPLAINED or not launcher.ranks_reported:
        print(f"{clear(sys.stderr)}{tail.text()}", end="", file=sys.stderr, flush=True)
    return LauncherEnd(ending=ending, stop_requested=launcher.stop_requested)


def _run_directory(arguments: list[str]) -> str:
    return arguments[arguments.index("--run") + 1]


@contextmanager
def _with_port(layout: RankLayout) -> Iterator[RankLayout]:
    """A layout that names a port: on one host one of ours, kept for rank 0, unless the user names one."""
    if layout.hosts is not None or layout.port is not None:
        yield layout
    else:
        with reserved_port() as port:
            yield replace(layout, port=port)


def ssh_arguments(layout: RankLayout) -> str:
    """Further arguments of ssh: the user's, the port, and those by which it notices a host that is gone.

    Of an option that is given twice ssh takes the first.
    """
    port = "" if layout.ssh_port is None else f" -p {layout.ssh_port}"
    return f"{os.environ.get('PDSH_SSH_ARGS_APPEND', '')}{port} {_KEEP_ALIVE}"


def remote_ranks(layout: RankLayout, arguments: list[str], environment: Mapping[str, str]) -> RemoteRanks:
    """The ranks of a layout that ssh starts, or has started, with these arguments."""
    assert layout.hosts is not None
    run = _run_directory(arguments)
    return RemoteRanks(list(layout.hosts.slots), run, {**environment, "PDSH_SSH_ARGS_APPEND": ssh_arguments(layout)})


def _run_by_ssh(
    layout: RankLayout, arguments: list[str], environment: dict[str, str], *, patience: float
) -> LauncherEnd:
    """Run the ranks of all hosts. Each host chooses its devices: it may have GPUs where this one has none."""
    assert layout.hosts is not None
    environment["PYTHONPATH"] = _python_path(environment)
    run = _run_directory(arguments)
    collector = StderrCollector(Path(run) / SSH_LOG)
    command = launcher_command(layout, arguments)
    check_ssh(list(layout.hosts.slots), ssh_arguments(layout))
    chosen = forwarded(environment) | {name: environment[name] for name in (DATA,) if name in environment}
    private = {name: value for name, value in chosen.items() if is_private(name, value)}
    environment = {name: value for name, value in environment.items() if name not in private}
    tail = LogTail(Path(run), range(len(layout.hosts.slots)))
    with (
        private_files(Path(run), private, layout.hosts.num_ranks) as token,
        tempfile.NamedTemporaryFile("w", prefix="dmd-environment-") as file,
    ):
        for_ranks = {**forwarded(environment), **token, REPORTS: collector.address, LOG: run}
        file.writelines(f"{name}={value}\n" for name, value in for_ranks.items())
        file.flush()
        ranks = remote_ranks(layout, arguments, environment)
        launcher = Launcher(ranks, collector, layout.rank_numbers, patience=patience)
        # DeepSpeed writes its own working directory, unquoted, into the remote command.
        start = os.getcwd() if shlex.quote(os.getcwd()) == os.getcwd() else "/"
        variables = {"DS_ENV_FILE": file.name, "PDSH_SSH_ARGS_APPEND": ssh_arguments(layout)}
        ending = launcher.run(["env", "-C", start, *command], {**environment, **variables})
    return _end_of(launcher, ending, tail)


def _python_path(environment: dict[str, str]) -> str:
    """PYTHONPATH for ranks that start in another directory: this code, then the inherited one in absolute paths."""
    inherited = [os.path.abspath(part) for part in environment.get("PYTHONPATH", "").split(os.pathsep) if part]
    return os.pathsep.join(dict.fromkeys([str(SCRIPT.parent.parent), *inherited]))
