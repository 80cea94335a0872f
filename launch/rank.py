"""One rank of a training, as `launch/train.py` runs it: join the others, build, train, and say how it ended."""

import argparse
import logging
import os
import sys
import time
import traceback
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from data_shards.places import redact, to_place
from dmd.presets import load_config
from dmd.training.agreement import Diverged, StorageFailed
from dmd.training.epoch_report import Outcome
from dmd.training.resume import parse_resume
from launch.arguments import make_parser
from launch.determinism import make_deterministic
from launch.environment import choose_interfaces
from launch.exit_codes import FAILED, LOST, STOPPED, STORAGE, USER_ERROR
from launch.lost import lost_others
from launch.private import DATA, take_over
from launch.setup import use_fair_share_of_cores
from launch.supervise import Channels, StopRequest, lost_message, rank_name
from launch.watchdog import Watchdog


def train(options: argparse.Namespace, stop: StopRequest, channels: Channels) -> Outcome:
    """Train on this rank.

    Raises:
        ValueError: the user's mistake, or a training that diverged.
        OSError: the storage failed.
        RuntimeError: other ranks are gone or cannot be reached (`lost_others`), the device failed, or a bug.
    """
    from launch.engine import join_process_group
    from launch.training import make_training

    take_over(options.run, os.environ)
    data = to_place(os.environ.pop(DATA, options.data))
    config = load_config(options.preset, options.overrides)
    resume = parse_resume(options.resume)
    if config.train.deterministic:
        make_deterministic(os.environ)
    use_fair_share_of_cores(int(os.environ.get("LOCAL_SIZE", "1")))
    choose_interfaces(os.environ)
    watchdog = Watchdog(config.train.collective_timeout, channels.stacks)
    device = join_process_group(timedelta(seconds=config.train.collective_timeout))
    if dist.get_backend() == dist.Backend.NCCL and dist.get_world_size() > 1:
        channels.errors.hand_over()
    watchdog()
    training = make_training(
        config, data, options.run, device=device, resume=resume, stop_requested=stop, heartbeat=watchdog
    )
    try:
        outcome = training.run()
    except ValueError as error:
        if not isinstance(error, Diverged) and os.environ["RANK"] != "0":
            print(f"{rank_name()}: {error}", file=sys.stderr, flush=True)  # this rank alone knows
        raise
    watchdog.close()
    return outcome


def main(argv: list[str], stop: StopRequest, channels: Channels) -> int:
    """Parse, train, report; returns the exit code (`launch.exit_codes`)."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    parser = make_parser()
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher appends it
    options = parser.parse_args(argv)
    leads = os.environ.get("RANK", "0") == "0"
    begin = time.perf_counter()
    try:
        outcome = train(options, stop, channels)
    except ValueError as error:
        return _fail(str(error), USER_ERROR, tell=leads)
    except OSError as error:
        tell = leads or not isinstance(error, StorageFailed)
        return _fail(f"{rank_name()}: {error}; the same command continues when the storage is well", STORAGE, tell=tell)
    except RuntimeError as error:
        end_badly(error)
    if leads:
        print(outcome.text(options.run, time.perf_counter() - begin), flush=True)
    return STOPPED if outcome.stopped else 0


def _fail(message: str, code: int, *, tell: bool) -> int:
    if tell:
        print(f"dmd train: error: {redact(message)}", file=sys.stderr, flush=True)
    return code


def end_badly(error: RuntimeError) -> NoReturn:
    """End this rank over an error of torch's, and say what it was.

    Nothing is taken down: gloo, NCCL and CUDA abort the process over what a failure has left.

    Raises:
        RuntimeError: the same error, where it is none that is known: a bug.
    """
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if isinstance(error, torch.OutOfMemoryError):
        way = "lower train.ghost_batches_per_forward, then the same command continues"
        code = _fail(f"{rank_name()} has no memory left on its device ({reason}); {way}", FAILED, tell=True)
    elif isinstance(error, torch.AcceleratorError):
        traceback.print_exception(error)
        code = _fail(f"the device of {rank_name()} failed ({reason})", FAILED, tell=True)
    elif lost_others(error):
        code = _fail(lost_message(reason), LOST, tell=True)
    else:
        raise error
    sys.stdout.flush()
    os._exit(code)
