"""What `dmd train` does where it starts the ranks itself; `dmd doctor` and `dmd demo`."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data_shards.command_line import Parser
from data_shards.places import redact
from data_shards.waiting import waiting
from dmd.exit_codes import SIGNALLED, STOPPED
from launch.starting.rank_layout import DEFAULT_PORT, RankLayout
from launch.supervision.supervise import STOP_SIGNALS

if TYPE_CHECKING:
    from dmd.config import Config
    from launch.starting.restarts import RestartRule

_FIRST_SIGN_SECONDS = 1.5
"""Until a command that is about to train says something, at the latest."""


def loading_torch() -> AbstractContextManager[None]:
    """Around imports that load PyTorch: says so where they take long."""
    return waiting("PyTorch to load", after=_FIRST_SIGN_SECONDS)


@contextmanager
def stop_ends_process(told: str = "asked to stop before a rank ran; the same command continues") -> Iterator[None]:
    """End this process at once on a request to stop: before ranks run there is nothing to save.

    Args:
        told: what is said then.
    """

    def end(number: int, frame: object) -> NoReturn:
        print(f"dmd train: {told}", file=sys.stderr, flush=True)
        sys.exit(STOPPED)

    previous = {number: signal.signal(number, end) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def train_by_launcher(options: argparse.Namespace) -> int:
    """What `dmd train` does without a Ray cluster, for the options of `launch.arguments.train_parser`.

    Raises:
        ValueError: the user's mistakes.
    """
    from dmd.config import TrainConfig
    from dmd.extras import require
    from launch.arguments import rank_arguments
    from launch.made_runs import has_begun, leave_no_log_alone, made_run

    require("deepspeed")
    if options.dry_run:
        with stop_ends_process("asked to stop; a dry run writes nothing"):
            return _dry_run(options)
    with loading_torch():
        from dmd.training.logging.provenance import COMMAND
        from launch.starting.restarts import run_with_restarts
        from launch.starting.runner import EXPLAINED, LauncherEnd, run_launcher
    from launch.supervision.ending import MADE_RUN, continued, print_ending

    layout = _layout(options)
    rule = _restart_rule(options, layout)
    further: list[str] = []
    patience = TrainConfig.collective_timeout
    rejection = ""
    try:
        with waiting("the config and the shards to be checked"):
            config = _check(options, layout)
        patience = config.train.collective_timeout
        encoder = Path(config.text.encoder)
        if layout.by_ssh and encoder.is_dir() and not encoder.is_absolute():
            further = [f"text.encoder={json.dumps(str(encoder.absolute()))}"]
    except ValueError as error:
        if layout.host_rank is None:
            raise
        rejection = redact(str(error))
        print(f"dmd train: {rejection}; telling the other hosts", file=sys.stderr, flush=True)

    def attempt(layout: RankLayout, arguments: list[str], about: Mapping[str, str]) -> LauncherEnd:
        if options.run_is_made:
            about = {**about, MADE_RUN: str(options.run)}
        return run_launcher(
            layout,
            arguments,
            options.data,
            patience=patience,
            rejection=rejection,
            about={**about, COMMAND: redact(options.command)},
        )

    with made_run(options) as run:
        ranks = f"{layout.num_ranks} rank{'s' * (layout.num_ranks > 1)}"
        print(f"starting {ranks}{_on_hosts(layout)}", flush=True)
        ending = run_with_restarts(layout, [*rank_arguments(options), *further], rule, attempt)
        if ending.code in EXPLAINED:
            leave_no_log_alone(options)
        print_ending(continued(ending, run) if has_begun(options) else ending)
    return ending.code


def _dry_run(options: argparse.Namespace) -> int:
    with loading_torch():
        from dmd.kernels.backend import default_device

        if default_device().type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed warns at its import, here and in the timing process
        from launch.dry_run import dry_run
    layout = _layout(options)
    _restart_rule(options, layout)
    return dry_run(_check(options, layout), options, layout)


def _on_hosts(layout: RankLayout) -> str:
    """Where the ranks of a layout are."""
    if layout.hosts is None:
        return " on this host"
    return f" on {', '.join(layout.hosts.slots)}"


def _check(options: argparse.Namespace, layout: RankLayout) -> "Config":
    """The config of a training, which this host can run. Raises ValueError where it cannot."""
    from dmd.checkpoint.resume import parse_resume
    from dmd.config.options import config_of
    from launch.devices import check_ranks, num_gpus
    from launch.trainer.preflight import check_command

    if layout.hosts is None:
        check_ranks(layout.ranks, num_gpus())
    config = config_of(options)
    check_command(
        config,
        options.data,
        options.run,
        resume=parse_resume(options.resume),
        overrides=options.overrides,
        num_ranks=layout.num_ranks,
        here=not layout.by_ssh,
    )
    return config


def _restart_rule(options: argparse.Namespace, layout: RankLayout) -> "RestartRule":
    from launch.arguments import check_restarts
    from launch.starting.restarts import RestartRule

    check_restarts(options)
    if options.restarts and layout.host_rank is not None:
        raise ValueError(
            f"--restarts {options.restarts} with --host-rank: no command sees the ranks of all hosts; start them by "
            "ssh (--hosts alone) or on a Ray cluster (--address), or let the scheduler repeat the commands of all hosts"
        )
    if options.min_ranks is not None and layout.hosts is None:
        raise ValueError(f"--min-ranks is {options.min_ranks}; one host starts all of its ranks again, leave it out")
    min_ranks = layout.num_ranks if options.min_ranks is None else options.min_ranks
    if not 1 <= min_ranks <= layout.num_ranks:
        raise ValueError(
            f"--min-ranks is {min_ranks}; it must lie between 1 and the ranks, which are {layout.num_ranks}"
        )
    return RestartRule(restarts=options.restarts, min_ranks=min_ranks, patience=options.patience)


def _layout(options: argparse.Namespace) -> RankLayout:
    from launch.network.ports import check_port
    from launch.starting.hosts import read_hosts
    from launch.starting.runner import default_ranks

    if options.hosts is None:
        if options.host_rank is not None:
            raise ValueError(f"--host-rank {options.host_rank} without --hosts; name the hostfile")
        ranks = default_ranks() if options.ranks is None else options.ranks
        if ranks < 1:
            raise ValueError(f"--ranks is {ranks}; it must be at least 1")
        if options.port is not None:
            check_port(options.port, here=True)
        return RankLayout(ranks=ranks, port=options.port)
    hosts = read_hosts(options.hosts)
    if options.ranks is not None:
        raise ValueError(f"--ranks {options.ranks} and --hosts; the hostfile's slots say how many ranks a host gets")
    if options.host_rank is not None and not 0 <= options.host_rank < len(hosts.slots):
        last = len(hosts.slots) - 1
        raise ValueError(f"--host-rank is {options.host_rank}; {options.hosts} has the hosts 0 to {last}")
    check_port(DEFAULT_PORT if options.port is None else options.port, here=options.host_rank == 0)
    return RankLayout(ranks=0, hosts=hosts, host_rank=options.host_rank, port=options.port, ssh_port=options.ssh_port)


def doctor(argv: list[str]) -> int:
    """Print what to know before a long run: devices, network, compiler, versions, storage; 1 if a check fails."""
    parser = Parser(prog="dmd doctor", description=doctor.__doc__)
    parser.add_argument("--run", type=Path, default=Path(), help="where runs are to be written (default: here)")
    parser.add_argument("--hosts", type=Path, metavar="HOSTFILE", help="the hosts of a training, rank 0 first")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="TCP port on rank 0's host (default: %(default)s)"
    )
    options = parser.parse_args(argv)

    from launch.doctor import diagnose

    return diagnose(options.run, options.hosts, options.port)


def demo(argv: list[str]) -> int:
    """Synthetic data, shards, a training on two ranks, a test result: the whole way in minutes."""
    parser = Parser(prog="dmd demo", description=demo.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where to write (default: a new temporary directory)")
    parser.add_argument("--ranks", type=int, help="default: 2, or 1 where there is one GPU")
    options = parser.parse_args(argv)
    from launch.devices import num_gpus

    ranks = min(2, num_gpus() or 2) if options.ranks is None else options.ranks
    folder = options.folder or Path(tempfile.mkdtemp(prefix="dmd-demo-"))
    shards, run = folder / "shards", folder / "run"
    train = ["train", "--preset", "demo", "--data", str(shards), "--run", str(run), "--ranks", str(ranks)]
    steps = {
        "Synthetic features become shards": ["shard", "--synthetic", str(shards)],
        "Every byte of them is compared with its checksum": ["verify", str(shards)],
        "A small network is trained on them": train,
        "Its best checkpoint predicts samples that it has not seen": ["evaluate", str(run), "--split", "test"],
    }
    for number, (title, step) in enumerate(steps.items(), 1):
        print(f"\n{number} of {len(steps)}: {title}.\n$ dmd {shlex.join(step)}", flush=True)
        code = run_step([sys.executable, "-m", "dmd.cli", *step])
        if code:
            return code
    print(f"\nCurves: {sys.executable} -m tensorboard.main --logdir {shlex.quote(str(run))}")
    return 0


def run_step(command: list[str]) -> int:
    """Run a command that handles Ctrl-C, which reaches this process too, by itself; returns its exit code."""

    def leave_it(number: int, frame: object) -> None:
        """Not SIG_IGN, which the command would inherit."""

    ignored = not callable(signal.getsignal(signal.SIGINT))
    previous = None if ignored else signal.signal(signal.SIGINT, leave_it)
    try:
        code = subprocess.Popen(command).wait()
    finally:
        if previous is not None:
            signal.signal(signal.SIGINT, previous)
    return code if code >= 0 else SIGNALLED - code
