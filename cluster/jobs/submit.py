"""Run a command such as `dmd tune` as a job on a Ray cluster, from a machine that only reaches its dashboard.

    dmd submit --address http://HEAD:8265 tune --preset mosi-aligned --data /nfs/shards --out /nfs/mosi --space ...
    dmd submit --address http://HEAD:8265 status ID      (or: logs ID, logs ID --rank R, stop ID)

Uploaded are the four packages, constraints.txt, and files that the command names; never data, runs or a virtual
environment, whatever the directory holds. A token (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token) goes with
every request.
"""

import argparse
import asyncio
import configparser
import hashlib
import os
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.jobs.job_commands import JOB_COMMANDS
from cluster.jobs.parser import MANAGED
from cluster.ray_runtime.access import PLACES, find_token, send_token
from data_shards.command_line import Parser
from dmd.exit_codes import LOST, STOPPED
from dmd.training.logging.trackers.variables import tracker_variables
from launch.starting.private_variables import holds_secret

UPLOADED = ("cluster", "data_shards", "dmd", "launch", "constraints.txt", "setup.cfg", "pyproject.toml")
ANSWER_SECONDS = 60
_LOOK_SECONDS = 30
_AGENT_SECONDS = 60
_NO_AGENT = "No available agent to submit job"
"""What Ray's dashboard answers then (ray/dashboard/modules/job/job_head.py)."""
_STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
_STOP_SECONDS = 120
"""Time for a job that is asked to stop: its ranks write a checkpoint. Ray's own limit is 3."""
_SETUP_SECONDS = 3600
"""How long pip may take for the pinned environment; with CUDA libraries it is gigabytes. Ray's own limit is 600."""


def submit(options: argparse.Namespace) -> int:
    """Submit, look at or stop a job; returns its exit code where it waits for it.

    Args:
        options: of `cluster.jobs.parser.make_parser`.

    Raises:
        ValueError: the user's mistakes. OSError: no dashboard at the address.
    """
    if options.command in MANAGED:
        return manage(options.command, options.arguments, options.address)
    root = options.working_dir.absolute()
    files = named_files(root, options.command, options.arguments)
    trackers = JOB_COMMANDS[options.command].trackers(root, options.arguments)
    variables = public_variables(tracker_variables(trackers, os.environ))
    environment = runtime_environment(root, files, variables, pinned=options.environment == "pinned")
    arguments = [*JOB_COMMANDS[options.command].added, *options.arguments]
    entrypoint = shlex.join(["python", "-m", "cluster.jobs.entrypoint", options.command, *arguments])
    client = connect(options.address)
    try:
        job = _submit(
            client,
            entrypoint=entrypoint,
            submission_id=options.id,
            runtime_env=environment,
            entrypoint_num_cpus=options.entrypoint_cpus or None,
        )
    except RuntimeError as error:
        reason = next(line for line in reversed(str(error).splitlines()) if line.strip(" ."))
        raise ValueError(f"{options.address} refuses the job: {reason}") from error
    print(
        f"job {job} on {options.address}: dmd submit --address {shlex.quote(options.address)} status|logs|stop {job}",
        flush=True,
    )
    return 0 if options.no_wait else follow(client, job)


def _submit(client: "Client", **job: Any) -> str:
    """Submit a job. The head of a cluster that has just started has no agent yet that would take it; each request waits
    ten seconds for one, and is repeated."""
    deadline = time.monotonic() + _AGENT_SECONDS
    while True:
        try:
            return client.submit_job(**job)
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise


def named_files(root: Path, command: str, arguments: list[str]) -> list[Path]:
    """Files in the directory that a command names: its space, its config. The command's line is checked on the way.

    Raises:
        ValueError: not a checkout; what `JobCommand.uploads` finds. SystemExit: as argparse.
    """
    missing = [name for name in UPLOADED if not (root / name).exists()]
    if missing:
        raise ValueError(f"{root} is not the project's directory (no {missing[0]}); name it with --working-dir")
    return JOB_COMMANDS[command].uploads(root, arguments)


def public_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those variables that a job may be given, since Ray's job list shows them to everybody; says which it may not."""
    secret = [name for name, value in variables.items() if holds_secret(name, value)]
    if secret:
        names, them = ", ".join(secret), "it" if len(secret) == 1 else "them"
        print(f"not sent, since Ray's job list is open to everybody: {names}; set {them} on the nodes", file=sys.stderr)
    return {name: value for name, value in variables.items() if name not in secret}


def runtime_environment(root: Path, files: list[Path], variables: Mapping[str, str], *, pinned: bool) -> dict[str, Any]:
    """What Ray uploads, the project's packages and these files, and installs for a job, and its variables."""
    extra = [path.as_posix() for path in files if path.parts[0] not in UPLOADED]
    return {
        "env_vars": {_STOP_WAIT: str(_STOP_SECONDS), **variables},
        "working_dir": str(root),
        "excludes": excludes([*UPLOADED, *extra]),
        **(pinned_environment(root) if pinned else {}),
    }


def excludes(kept: list[str]) -> list[str]:
    """Patterns, as in .gitignore, that leave out all of a directory but `kept`; Ray enters no directory left out."""
    parents = {parent.as_posix() for name in kept for parent in Path(name).parents} - {"."}
    opened = [pattern for parent in sorted(parents) for pattern in (f"!/{parent}", f"/{parent}/*")]
    return ["/*", "!/.", *opened, *(f"!/{name}" for name in kept), "__pycache__", "*.tar", "*.pkl", "*.safetensors"]


def pinned_environment(root: Path) -> dict[str, Any]:
    """The part of a runtime environment that lets pip make the versions of constraints.txt on every node."""
    return {"pip": requirements(root / "setup.cfg"), "config": {"setup_timeout_seconds": _SETUP_SECONDS}}


_EXTRAS = ("train", "csd", "extract", "librosa", "optuna", "quantize", "remote", "track")
"""What a job may need beside Ray."""


def requirements(setup: Path) -> list[str]:
    """What pip makes of the project's own requirements, at the versions of the uploaded constraints.txt.

    Optuna, bitsandbytes and the remote file systems are among them, since a command may ask for any. Ray is left out: a
    job runs on the cluster's. Nodes keep an environment for the next job with the same lines, so one of them, a comment
    to pip, says what is in constraints.txt.
    """
    parser = configparser.ConfigParser()
    parser.read(setup, encoding="utf-8")
    extras = parser["options.extras_require"]
    lines = [parser["options"]["install_requires"], *(extras[name] for name in _EXTRAS)]
    wanted = "\n".join(lines).split("\n")
    digest = hashlib.sha256(setup.with_name("constraints.txt").read_bytes()).hexdigest()
    constrained = ["-c ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt", f"# sha256 of constraints.txt: {digest}"]
    return [*constrained, *filter(None, wanted)]


class Client(JobSubmissionClient):
    """With a limit for every answer: Ray's own waits for ever for a dashboard that takes a connection and is silent."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": ANSWER_SECONDS, **options})


def connect(address: str) -> Client:
    """A client of the dashboard.

    Raises:
        ValueError: no dashboard there, or one that rejects the token.
    """
    send_token()
    try:
        return Client(address)
    except AuthenticationError as error:
        token = find_token()
        sent = f"refuses the token in {token[1]}" if token else "wants a token and there is none"
        raise ValueError(f"the cluster at {address} {sent}; put the cluster's into {PLACES}") from error
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"no Ray dashboard for jobs at {address}: {reason}") from error


def follow(client: Client, job: str, *, rank: int | None = None) -> int:
    """Print a job's log until it ends; its exit code, or 69 without the dashboard. Ctrl-C leaves the job running.

    Args:
        rank: print what this rank has printed, alone.
    """
    show = print_all if rank is None else LinesOfRank(rank)

    async def print_log() -> None:
        try:
            async for text in client.tail_job_logs(job):
                show(text)
        finally:
            if isinstance(show, LinesOfRank):
                show.end()

    async def print_while_there() -> None:
        log = asyncio.create_task(print_log())
        while not (await asyncio.wait({log}, timeout=_LOOK_SECONDS))[0]:
            await asyncio.to_thread(client.get_job_info, job)  # a host that vanishes closes no connection
        await log

    try:
        asyncio.run(print_while_there())
        return exit_code(client, job)
    except (OSError, RuntimeError, aiohttp.ClientError) as error:
        reason = str(error).strip().splitlines()[0]
        print(f"no answer from the dashboard ({reason}); job {job} may go on, `logs {job}` shows", file=sys.stderr)
        return LOST


def print_all(text: str) -> None:
    """Print a part of a log."""
    print(text, end="", flush=True)


class LinesOfRank:
    """Prints the lines of one rank, by the name that Ray puts before each (`cluster.ray_runtime.worker`)."""

    def __init__(self, rank: int) -> None:
        self._prefix = f"(rank {rank} on "
        self._begun = ""
        """A line whose end has not come yet."""

    def __call__(self, text: str) -> None:
        """Print the lines of the rank that the next part of the log completes."""
        *whole, self._begun = (self._begun + text).split("\n")
        for line in whole:
            if line.startswith(self._prefix):
                print(line, flush=True)

    def end(self) -> None:
        """Print a last line that has no end."""
        self("\n")


def exit_code(client: Client, job: str) -> int:
    """What a job that has ended returned; 75 where it was stopped, 1 where it never started."""
    info = client.get_job_info(job)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    print(f"job {job} {info.status.value.lower()}: {info.message}", file=sys.stderr)
    return STOPPED if info.status == JobStatus.STOPPED else info.driver_exit_code or 1


def manage(command: str, arguments: list[str], address: str) -> int:
    """Show the state of a job (`status`), follow it (`logs`) or `stop` it; returns the exit code.

    Raises:
        ValueError: not one job id, or none that the cluster knows. OSError: no dashboard at the address.
    """
    parser = Parser(prog=f"dmd submit {command}")
    parser.add_argument("jobs", nargs="*", metavar="ID", help="what `dmd submit` printed")
    if command == "logs":
        parser.add_argument("--rank", type=int, metavar="R", help="what this rank of a training has printed, alone")
    options = parser.parse_intermixed_args(arguments)
    if len(options.jobs) != 1:
        raise ValueError(f"dmd submit {command} wants one job id")
    client, job = connect(address), options.jobs[0]
    try:
        client.get_job_info(job)
    except RuntimeError as error:
        raise ValueError(f"there is no job {job} at {address}") from error
    if command == "stop":
        print("stopping" if client.stop_job(job) else "has already ended")
        return 0
    if command == "logs":
        return follow(client, job, rank=options.rank)
    info = client.get_job_info(job)
    print(f"{job} {info.status.value}: {info.message or info.entrypoint}")
    return 0
