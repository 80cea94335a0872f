"""One rank of a training, as `launch/train.py` runs it: join the others, build, train, and say how it ended."""

import argparse
import logging
import os
import re
import sys
import time
from datetime import timedelta

from dmd.presets import load_config
from dmd.training.agreement import Diverged, StorageFailed
from dmd.training.epoch_report import Outcome
from dmd.training.resume import parse_resume
from launch.arguments import make_parser
from launch.environment import choose_interfaces
from launch.exit_codes import LOST, STOPPED, STORAGE, USER_ERROR
from launch.setup import use_fair_share_of_cores
from launch.supervise import StopRequest, rank_name
from launch.watchdog import Watchdog

_OF_COLLECTIVES = re.compile(r"gloo|nccl|connection (closed|reset|refused)|timed? ?out|broken pipe|socket", re.I)


def train(options: argparse.Namespace, stop: StopRequest, stacks: int) -> Outcome:
    """Train on this rank.

    Raises:
        ValueError: the user's mistake, or a training that diverged.
        OSError: the storage failed.
        RuntimeError: other ranks are gone or cannot be reached (`lost_others`), or a bug.
    """
    from launch.engine import join_process_group
    from launch.training import make_training

    config = load_config(options.preset, options.overrides)
    resume = parse_resume(options.resume)
    use_fair_share_of_cores(int(os.environ.get("LOCAL_SIZE", "1")))
    choose_interfaces(os.environ)
    watchdog = Watchdog(config.train.collective_timeout, stacks)
    device = join_process_group(timedelta(seconds=config.train.collective_timeout))
    watchdog()
    training = make_training(
        config, options.data, options.run, device=device, resume=resume, stop_requested=stop, heartbeat=watchdog
    )
    try:
        outcome = training.run()
    except ValueError as error:
        if not isinstance(error, Diverged) and os.environ["RANK"] != "0":
            print(f"{rank_name()}: {error}", file=sys.stderr, flush=True)  # this rank alone knows
        raise
    watchdog.close()
    return outcome


def lost_others(error: RuntimeError) -> bool:
    """Whether an error of torch's says that a collective failed; gloo's are plain RuntimeErrors."""
    return type(error).__module__.startswith("torch") or _OF_COLLECTIVES.search(str(error)) is not None


def main(argv: list[str], stop: StopRequest, stacks: int) -> int:
    """Parse, train, report; returns the exit code (`launch.exit_codes`)."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    parser = make_parser()
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher appends it
    options = parser.parse_args(argv)
    leads = os.environ.get("RANK", "0") == "0"
    begin = time.perf_counter()
    try:
        outcome = train(options, stop, stacks)
    except ValueError as error:
        return _fail(str(error), USER_ERROR, tell=leads)
    except OSError as error:
        tell = leads or not isinstance(error, StorageFailed)
        return _fail(f"{rank_name()}: {error}; the same command continues when the storage is well", STORAGE, tell=tell)
    except RuntimeError as error:
        if not lost_others(error):
            raise
        reason = str(error).splitlines()[0]
        _fail(f"{rank_name()} lost the other ranks ({reason}); the same command continues", LOST, tell=True)
        sys.stdout.flush()
        os._exit(LOST)  # gloo aborts the process when it takes down what a failed collective has left
    if leads and outcome.stopped:
        print(f"stopped at step {outcome.step}; the same command continues", flush=True)
    elif leads:
        print(
            f"trained {outcome.step} steps ({outcome.epoch} epochs) in {time.perf_counter() - begin:.0f} s; best "
            f"validation loss {outcome.best_loss:.4f} at step {outcome.best_step}; run: {options.run}", flush=True,
        )  # fmt: skip
    return STOPPED if outcome.stopped else 0


def _fail(message: str, code: int, *, tell: bool) -> int:
    if tell:
        print(f"dmd train: error: {message}", file=sys.stderr, flush=True)
    return code
