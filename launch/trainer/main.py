"""One rank of a training, as `launch/train.py` runs it: join the others, build, train, and report how it ended."""

import argparse
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from data_shards.places import to_place
from data_shards.waiting import waiting
from dmd.checkpoint.resume import Resume, parse_resume
from dmd.config import Config, TrainConfig
from dmd.config.options import config_of
from dmd.exit_codes import STOPPED
from dmd.training.outcome import Outcome
from launch.arguments import parse_rank
from launch.network.interfaces import choose_interfaces
from launch.starting.environment import REJECTION, WRITERS
from launch.starting.private_variables import DATA, read_private_file
from launch.supervision.channels import Channels
from launch.supervision.ending import Ending
from launch.supervision.failures import ending_of
from launch.supervision.launcher_log import library_output
from launch.supervision.peers import Peers, leave
from launch.supervision.supervise import StopRequest
from launch.supervision.watchdog import JOIN_MARGIN, Watchdog
from launch.trainer.determinism import make_deterministic
from launch.trainer.host_tuning import keep_freed_memory
from launch.trainer.threads import set_threads


@dataclass
class RankState:
    """How far a rank has come; the message of an error depends on it."""

    config: Config | None = None
    training: bool = False


def train(
    options: argparse.Namespace, stop: StopRequest, channels: Channels, peers: Peers, state: RankState
) -> Outcome:
    """Train on this rank.

    Raises:
        ValueError: the user's mistake, or a training that diverged.
        OSError: the storage failed.
        RuntimeError: other ranks are gone or cannot be reached (`lost_peers`), the device failed, or a bug.
    """
    shown = os.environ.get("RANK", "0") == "0"
    with waiting("DeepSpeed to load on the ranks", shown=shown), library_output():
        from launch.trainer.build import make_training
        from launch.trainer.engine import join_process_group, leave_process_group

    choose_interfaces(os.environ)
    config, resume = read_options(options, channels, peers)
    state.config = config
    if config.train.deterministic:
        make_deterministic(os.environ)
    watchdog = Watchdog(config.train.collective_timeout, channels)
    channels.patience_seconds = config.train.collective_timeout
    timeout = timedelta(seconds=config.train.collective_timeout)
    watchdog.allow(2 * config.train.collective_timeout + JOIN_MARGIN)  # the two timeouts below end by themselves
    peers.connect(timeout)
    read_private_file(
        options.run, os.environ
    )  # after `connect`, so that the others learn if this host lacks the run directory
    data = to_place(os.environ.pop(DATA, options.data))
    with waiting("the other ranks to join", shown=shown):
        device = join_process_group(timeout)
    if dist.get_backend() == dist.Backend.NCCL and dist.get_world_size() > 1:
        channels.stderr.redirect_stderr()
    watchdog()
    set_threads(options.run, device)
    if device.type == "cpu":
        keep_freed_memory()
    training = make_training(
        config,
        data,
        options.run,
        device=device,
        resume=resume,
        stop_requested=stop,
        heartbeat=watchdog,
        group=os.environ.get(WRITERS, ""),
    )
    state.training = True
    peers.begin()
    outcome = training.run()
    leave_process_group()
    watchdog.close()
    return outcome


def read_options(options: argparse.Namespace, channels: Channels, peers: Peers) -> tuple[Config, Resume]:
    """The config of this rank and what it resumes. Where they are wrong it joins the others, to publish that.

    Raises:
        ValueError: a mistake in them, or the reason why `dmd train` rejected the training on this host.
    """
    try:
        if REJECTION in os.environ:
            raise ValueError(os.environ[REJECTION])
        return config_of(options), parse_resume(options.resume)
    except ValueError:
        patience = TrainConfig.collective_timeout
        Watchdog(patience, channels).allow(2 * patience + JOIN_MARGIN)
        with suppress(dist.DistError):  # rank 0 cannot be reached
            peers.connect(timedelta(seconds=patience), to_leave=True)
        raise


def main(argv: list[str], stop: StopRequest, channels: Channels) -> int:
    """Parse, train, report; returns the exit code (`dmd.exit_codes`)."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    options = parse_rank(argv)
    begin = time.perf_counter()
    outcome = run_rank(lambda peers, state: train(options, stop, channels, peers, state), channels)
    if os.environ.get("RANK", "0") == "0":
        print(outcome.text(options.run, time.perf_counter() - begin), flush=True)
    return STOPPED if outcome.stopped else 0


def run_rank(work: Callable[[Peers, RankState], Outcome], channels: Channels) -> Outcome:
    """Run a rank's part; on an error this process publishes why, and ends here."""
    rank = int(os.environ.get("RANK", "0"))
    peers = Peers(channels)
    state = RankState()
    try:
        outcome = work(peers, state)
    except Exception as error:
        ending: Ending = ending_of(error, rank, state.config, alone=state.training)
        leave(channels, peers.final_ending(ending))
    peers.close()
    return outcome
