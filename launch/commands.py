"""Subcommands of `dmd` that start ranks: train, demo."""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data_shards.places import redact
from dmd.exit_codes import STOPPED
from launch.starting.rank_layout import DEFAULT_PORT, RankLayout
from launch.supervision.supervise import STOP_SIGNALS

if TYPE_CHECKING:
    from dmd.config import Config


def train(argv: list[str]) -> int:
    """Train DMD on shards with DeepSpeed; the same command again continues the run."""
    with _stop_ends_process():
        return _train(argv)


@contextmanager
def _stop_ends_process() -> Iterator[None]:
    """End this process at once on a request to stop: before ranks run there is nothing to save."""

    def end(number: int, frame: object) -> NoReturn:
        print("dmd train: asked to stop before a rank ran; the same command continues", file=sys.stderr, flush=True)
        sys.exit(STOPPED)

    previous = {number: signal.signal(number, end) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _parse(argv: list[str]) -> argparse.Namespace:
    from launch.arguments import make_parser

    parser = make_parser("dmd train")
    parser.add_argument("--ranks", type=int, help="processes on this machine (default: one per GPU, on a CPU one)")
    several = parser.add_argument_group("several hosts", "a hostfile has one `NAME slots=RANKS` per line, rank 0 first")
    several.add_argument("--hosts", type=Path, metavar="HOSTFILE", help="start the ranks of all hosts through ssh")
    several.add_argument(
        "--host-rank",
        type=int,
        metavar="N",
        help="start the ranks of this host alone, the N-th of the hostfile from 0: one such command per host, no ssh",
    )
    several.add_argument("--port", type=int, help="TCP port on rank 0's host (default: 29500; one host: a free one)")
    several.add_argument("--ssh-port", type=int, help="where sshd listens (default: as ssh says)")
    return parser.parse_intermixed_args(argv)


def _train(argv: list[str]) -> int:
    options = _parse(argv)
    from dmd.config import TrainConfig
    from launch.arguments import rank_arguments
    from launch.starting.runner import run_launcher
    from launch.supervision.ending import print_ending

    layout = _layout(options)
    arguments = rank_arguments(options)
    patience = TrainConfig.collective_timeout
    rejection = ""
    try:
        config = _check(options, layout)
        patience = config.train.collective_timeout
        encoder = Path(config.text.encoder)
        if layout.by_ssh and encoder.is_dir() and not encoder.is_absolute():
            arguments.append(f"text.encoder={json.dumps(str(encoder.absolute()))}")
    except ValueError as error:
        if layout.host_rank is None:
            raise
        rejection = redact(str(error))
        print(f"dmd train: {rejection}; telling the other hosts", file=sys.stderr, flush=True)
    ending = run_launcher(layout, arguments, options.data, patience=patience, rejection=rejection)
    print_ending(ending)
    return ending.code


def _check(options: argparse.Namespace, layout: RankLayout) -> "Config":
    """The config of a training, which this host can run. Raises ValueError where it cannot."""
    from dmd.checkpoint.resume import parse_resume
    from dmd.config.loading import load_config
    from launch.devices import check_ranks, num_gpus
    from launch.trainer.preflight import check_resume, check_training, open_shards, unread_overrides

    num_ranks = layout.ranks if layout.hosts is None else layout.hosts.num_ranks
    if layout.hosts is None:
        check_ranks(layout.ranks, num_gpus())
    config = load_config(options.preset, options.overrides)
    with open_shards(options.data, config) as reader:
        check_training(config, reader, options.run, num_ranks, here=not layout.by_ssh)
        check_resume(config, reader, options.run, parse_resume(options.resume))
        for override in unread_overrides(options.overrides, reader.index.info):
            why = f"{options.data} holds text features, so there is no text encoder"
            print(f"warning: {override} has no effect: {why}", file=sys.stderr, flush=True)
    return config


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


def demo(argv: list[str]) -> int:
    """Synthetic data, shards, a training on two ranks, a test result: the whole way in minutes."""
    parser = argparse.ArgumentParser(prog="dmd demo", description=demo.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="where to write (default: a new temporary directory)")
    parser.add_argument("--ranks", type=int, help="default: 2, or 1 where there is one GPU")
    options = parser.parse_args(argv)
    from launch.devices import num_gpus

    ranks = min(2, num_gpus() or 2) if options.ranks is None else options.ranks
    folder = options.folder or Path(tempfile.mkdtemp(prefix="dmd-demo-"))
    shards, run = folder / "shards", folder / "run"
    steps = (
        ["shard", "--synthetic", str(shards)],
        ["verify", str(shards)],
        ["train", "--preset", "demo", "--data", str(shards), "--run", str(run), "--ranks", str(ranks)],
        ["evaluate", str(run), "--split", "test"],
    )
    for step in steps:
        print(f"\n$ dmd {' '.join(step)}", flush=True)
        code = subprocess.run([sys.executable, "-m", "dmd.cli", *step]).returncode
        if code:
            return code
    print(f"\nLogs: {sys.executable} -m tensorboard.main --logdir {run}")
    return 0
