"""The script that the DeepSpeed launcher runs on every rank.

    deepspeed --num_accelerators 2 launch/train.py --preset mosi-aligned --data SHARDS --run RUN [section.key=value ...]

`dmd train` starts the launcher itself. Exit codes: 0 done, 2 the user's mistake (one line on stderr), 75 stopped by
SIGTERM or SIGINT after a checkpoint: the same command continues.
"""

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path

from dmd.presets import load_config, preset_names
from dmd.training.loop import Outcome
from launch.setup import use_fair_share_of_cores

USER_ERROR = 2
STOPPED = 75
"""EX_TEMPFAIL: a checkpoint was written on request, run the same command again."""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Arguments of a training, shared with `dmd train`."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Train DMD on shards with DeepSpeed. The same command again continues the run."
    )
    parser.add_argument("--preset", help=f"one of {', '.join(preset_names())}, or a YAML file; none: the defaults")
    parser.add_argument("--data", required=True, metavar="SHARDS", help="directory that `dmd shard` wrote")
    parser.add_argument("--run", required=True, type=Path, metavar="RUN", help="directory of the run: all it writes")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="config values, such as train.seed=7")
    return parser


class StopSignal:
    """Notes SIGTERM and SIGINT; a training asks for it at step boundaries."""

    def __init__(self) -> None:
        self.received = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.received = True

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.received


def train(options: argparse.Namespace) -> Outcome:
    """Train on this rank."""
    from launch.engine import join_process_group
    from launch.training import make_training

    stop = StopSignal()
    use_fair_share_of_cores(int(os.environ.get("LOCAL_SIZE", "1")))
    device = join_process_group()
    config = load_config(options.preset, options.overrides)
    return make_training(config, options.data, options.run, device=device, stop_requested=stop).run()


def main(argv: list[str] | None = None) -> int:
    """Parse, train, report; see the module's docstring for exit codes."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    parser = make_parser()
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher appends it
    options = parser.parse_args(argv)
    leads = os.environ.get("RANK", "0") == "0"
    begin = time.perf_counter()
    try:
        outcome = train(options)
    except ValueError as error:
        if leads:
            print(f"dmd train: error: {error}", file=sys.stderr, flush=True)
        return USER_ERROR
    if leads:
        seconds = time.perf_counter() - begin
        if outcome.stopped:
            print(f"stopped at step {outcome.step}; the same command continues", flush=True)
        else:
            print(
                f"trained {outcome.step} steps ({outcome.epoch} epochs) in {seconds:.0f} s; best validation MAE "
                f"{outcome.best_loss:.4f} at step {outcome.best_step}; run: {options.run}", flush=True,
            )  # fmt: skip
    return STOPPED if outcome.stopped else 0


if __name__ == "__main__":
    sys.exit(main())
